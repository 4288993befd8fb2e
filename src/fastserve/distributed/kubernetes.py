"""Manifests for Kubernetes: a configuration to a Kubeflow PyTorchJob, a model's name to a KServe InferenceService.

Both share one claim, mounted at MOUNT: $FASTSERVE_HOME lies in it, and the data, so that relative paths of the
configuration mean the same in every pod. Secrets are named, never written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import yaml
from pydantic import Field, StringConstraints

from fastserve import files
from fastserve.config import Config, Section
from fastserve.errors import ConfigError

Manifest = dict[str, Any]
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?$")]
Cores = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?m?$")]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=50)]

MOUNT = "/fastserve"
HOME, DATA = f"{MOUNT}/home", f"{MOUNT}/data"
CONFIGURATION = "/etc/fastserve/job.yaml"
KEYS = "/var/run/fastserve/keys/api-keys"
SERVE_PORT, RENDEZVOUS_PORT = 8080, 29400
PLACES = 3
"""Of so many pods each can keep the meeting when those before it are lost."""
DRAIN_SECONDS, UNROUTE_SECONDS = 30, 5
"""After SIGTERM a server finishes what it accepted; before, it waits until no more requests are sent to it."""
START_SECONDS = 300
_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]*@|[?&](token|key|secret|password|signature)=", re.IGNORECASE)


class ClusterOptions(Section):
    """What the configuration does not say about the cluster."""

    image: str = Field(min_length=1, description="container image with FastServe in it")
    namespace: Label | None = None
    claim: Label = Field("fastserve", description="name of the volume claim, shared by training and serving")
    storage: Quantity = Field("50Gi", description="size of the claim")
    storage_class: str | None = Field(None, description="one that many pods may mount; null: the cluster's own choice")
    cpu: Cores = Field("4", description="cores of each training pod")
    memory: Quantity = Field("8Gi", description="memory of each training pod")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs of each training pod")
    serve_cpu: Cores = Field("1", description="cores of each serving pod; its server has as many workers")
    serve_memory: Quantity = Field("2Gi", description="memory of each serving pod")
    replicas: str = Field("1", pattern=r"^[1-9]\d*(:[1-9]\d*)?$", description="serving pods, N or LEAST:MOST")
    alias: str = Field("production", description="which version is served; it is swapped when the alias moves")
    keys: Label | None = Field(None, description="name of the secret with the API keys; null: NAME-keys")


def manifests(config: Config, options: ClusterOptions) -> dict[str, list[Manifest]]:
    """File name to what it holds: the claim, the training, and the serving of what is trained."""
    if config.name is None:
        raise ConfigError(
            "a job on Kubernetes needs a name, under which its model is published: add --name NAME, or name: to it"
        )
    return {
        "claim.yaml": [claim(options)],
        "train.yaml": [configuration(config, options), training_job(config, options)],
        "serve.yaml": [inference_service(config.name, options.alias, options)],
    }


def write(folder: Path, content: Mapping[str, Sequence[Manifest]]) -> list[Path]:
    """Write each file atomically; what else is in the folder stays."""
    for name, documents in content.items():
        files.write_text(folder / name, to_yaml(documents))
    return [folder / name for name in content]


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such: a configuration inside of a manifest stays readable."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def to_yaml(documents: Sequence[Manifest]) -> str:
    """Several documents of one file, keys in the order in which they were written."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def claim(options: ClusterOptions) -> Manifest:
    """The volume that all pods share."""
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": options.storage}},
    }
    if options.storage_class is not None:
        spec["storageClassName"] = options.storage_class
    return _manifest("v1", "PersistentVolumeClaim", options.claim, options, spec=spec)


def configuration(config: Config, options: ClusterOptions) -> Manifest:
    """The configuration as the pods read it: what differs from the defaults."""
    content = config.model_dump(mode="json", exclude_defaults=True)
    for key, text in _texts(content):
        _check_text(key, text)
    name = f"{_label(str(config.name))}-config"
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return _manifest("v1", "ConfigMap", name, options, data={PurePosixPath(CONFIGURATION).name: text})


def training_job(config: Config, options: ClusterOptions) -> Manifest:
    """A pod for each node, which meet at the first one, or the next when that is lost.

    The job goes on with `least` of them, as torchrun's do. Whatever else the configuration names as the place of its
    workers, here they are the operator's.
    """
    name = f"{_label(str(config.name))}-train"
    least, most = config.distributed.nodes_range
    pods = [f"{name}-worker-{number}" for number in range(min(most, PLACES))]  # each has a service of its name
    command = ["fastserve", "train", CONFIGURATION, "--on", "local", "--nodes", f"{least}:{most}"]
    command += ["--rendezvous", ",".join(f"{pod}:{RENDEZVOUS_PORT}" for pod in pods)]
    workers = config.distributed.workers
    spec = {
        "nprocPerNode": str(workers),
        "elasticPolicy": {
            "minReplicas": least,
            "maxReplicas": most,
            "maxRestarts": config.distributed.restarts,
            "rdzvBackend": "c10d",
            "rdzvHost": pods[0],
            "rdzvPort": RENDEZVOUS_PORT,
        },
        "runPolicy": {"cleanPodPolicy": "Running", "backoffLimit": config.distributed.restarts},
        "pytorchReplicaSpecs": {
            "Worker": {
                "replicas": most,
                "restartPolicy": "OnFailure",
                "template": {"spec": _training_pod(str(config.name), command, options)},
            }
        },
    }
    return _manifest("kubeflow.org/v1", "PyTorchJob", name, options, spec=spec)


def inference_service(model: str, selector: str, options: ClusterOptions) -> Manifest:
    """Pods that answer with a version of a model, or with the one that an alias names.

    They are ready when the parity gate is passed, and finish what they accepted before they end.
    """
    name = _label(model)
    command = ["fastserve", "serve", f"{model}@{selector}", "--host", "0.0.0.0", "--port", str(SERVE_PORT)]
    command += ["--api-key-file", KEYS, "--workers", str(_whole_cores(options.serve_cpu))]
    command += ["--drain-seconds", str(DRAIN_SECONDS), "--start-seconds", str(START_SECONDS)]
    least, _, most = options.replicas.partition(":")
    scaling = {"scaleMetric": "cpu", "scaleTarget": 80} if most else {}
    predictor = {
        "minReplicas": int(least),
        "maxReplicas": int(most or least),
        **scaling,
        "terminationGracePeriodSeconds": UNROUTE_SECONDS + DRAIN_SECONDS + 10,
        "automountServiceAccountToken": False,
        "containers": [_server(command, options)],
        "volumes": [_shared(options), _keys(name, options)],
    }
    annotations = {"serving.kserve.io/deploymentMode": "RawDeployment"}  # the other mode allows neither drain nor claim
    kind = ("serving.kserve.io/v1beta1", "InferenceService", name)
    return _manifest(*kind, options, annotations=annotations, spec={"predictor": predictor})


def _training_pod(name: str, command: list[str], options: ClusterOptions) -> dict[str, Any]:
    container = {
        "name": "pytorch",  # the operator looks for this name
        "image": options.image,
        "command": command,
        "workingDir": DATA,
        "env": [{"name": "FASTSERVE_HOME", "value": HOME}, {"name": "HF_HUB_OFFLINE", "value": "1"}],
        "ports": [{"name": "rendezvous", "containerPort": RENDEZVOUS_PORT, "protocol": "TCP"}],
        "resources": _resources(options.cpu, options.memory, options.gpus),
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            {"name": "fastserve", "mountPath": MOUNT},
            {"name": "configuration", "mountPath": str(PurePosixPath(CONFIGURATION).parent), "readOnly": True},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
    volumes = [
        _shared(options),
        {"name": "configuration", "configMap": {"name": f"{_label(name)}-config"}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},  # workers of one pod talk through it
    ]
    return {"automountServiceAccountToken": False, "containers": [container], "volumes": volumes}


def _server(command: list[str], options: ClusterOptions) -> dict[str, Any]:
    return {
        "name": "kserve-container",
        "image": options.image,
        "command": command,
        "env": [{"name": "FASTSERVE_HOME", "value": HOME}, {"name": "PROTOCOL", "value": "v2"}],
        "ports": [{"name": "http1", "containerPort": SERVE_PORT, "protocol": "TCP"}],
        "resources": _resources(options.serve_cpu, options.serve_memory, 0),
        "securityContext": {"allowPrivilegeEscalation": False},
        "startupProbe": _probe("live", period=2, failures=START_SECONDS // 2),
        "livenessProbe": _probe("live", period=10, failures=3),
        "readinessProbe": _probe("ready", period=5, failures=2),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(UNROUTE_SECONDS)]}}},
        "volumeMounts": [
            {"name": "fastserve", "mountPath": MOUNT},
            {"name": "keys", "mountPath": str(PurePosixPath(KEYS).parent), "readOnly": True},
        ],
    }


def _probe(state: str, *, period: int, failures: int) -> dict[str, Any]:
    request = {"path": f"/v2/health/{state}", "port": SERVE_PORT}
    return {"httpGet": request, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _shared(options: ClusterOptions) -> dict[str, Any]:
    return {"name": "fastserve", "persistentVolumeClaim": {"claimName": options.claim}}


def _keys(name: str, options: ClusterOptions) -> dict[str, Any]:
    return {"name": "keys", "secret": {"secretName": secret_name(name, options), "defaultMode": 0o444}}


def secret_name(model: str, options: ClusterOptions) -> str:
    """Of the secret whose entry `api-keys` is the server's key file."""
    return options.keys or f"{_label(model)}-keys"


def _resources(cpu: str, memory: str, gpus: int) -> dict[str, Any]:
    """What is asked for is also the limit: FastServe takes as many threads as its control group allows cores."""
    amounts: dict[str, Any] = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": gpus} if gpus else {})}
    return {"requests": amounts, "limits": dict(amounts)}


def _whole_cores(cpu: str) -> int:
    cores = float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
    return max(1, int(cores))


def _manifest(
    version: str,
    kind: str,
    name: str,
    options: ClusterOptions,
    annotations: dict[str, str] | None = None,
    **content: Any,
) -> Manifest:
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/part-of": "fastserve"}}
    if options.namespace is not None:
        metadata["namespace"] = options.namespace
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _label(name: str) -> str:
    """A model's name as Kubernetes allows it: at most 40 small letters, digits and hyphens, a letter first."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"model-{label}"
    return label[:40].rstrip("-")


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a configuration, with its dotted key."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
    elif isinstance(content, str):
        yield key, content


def _check_text(key: str, text: str) -> None:
    """Refuse what must not be in a ConfigMap, and paths of this machine."""
    if _CREDENTIALS.search(text):
        raise ConfigError(f"{key} holds a password or a token, which must not be written to a ConfigMap; use a secret")
    outside = text.startswith(("~", "../")) or (text.startswith("/") and not text.startswith(f"{MOUNT}/"))
    if outside and key.startswith(("data.", "text.", "model.")):
        raise ConfigError(
            f"{key} = '{text}' is a path of this machine: copy it to the claim and write it relative to {DATA}, "
            f"or beginning with {MOUNT}/"
        )
