"""One address before several servers: a request goes where its beginning was read before, and where there is room."""
