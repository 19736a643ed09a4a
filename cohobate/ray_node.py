"""The Ray node that a process starts for its own workers where it is connected to no cluster."""


def start_unless_connected() -> bool:
    """Start a node on this machine unless Ray is initialised; return whether one was started."""
    import ray

    if ray.is_initialized():
        return False
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"worker_niceness": 0},  # they are this stage: as nice as it is
    )
    return True
