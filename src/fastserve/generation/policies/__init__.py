"""Who runs next: one file a policy, by name in `plugins.POLICIES`."""
