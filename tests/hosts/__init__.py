"""Hosts made of Linux namespaces, and a cluster brought up on them with ``ray up``."""
