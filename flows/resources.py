"""Resources that a stage requests from Ray: the section `resources` of params.yaml."""

from pydantic import Field

from cohobate.params import Section


class Resources(Section):
    """Resources of one stage, as Ray counts them. Not part of a stage's lineage."""

    cpus: float = Field(1, ge=0)
    """CPU slots that the stage occupies (how many threads it uses is the stage's own param)."""
    gpus: float = Field(0, ge=0)
    """GPUs, fractions allowed."""
    memory_gb: float = Field(0, ge=0)
    """GiB that Ray sets aside; 0: none."""
    gpu_memory_gb: float = Field(0, ge=0)
    """GiB of one GPU, where the cluster's GPUs cannot be looked at; `cohobate fits` and preflight
    reckon with them. 0: as seen, or by the GPU's name. Ray does not use it."""
    custom: dict[str, float] = Field(default_factory=dict)
    """Custom resources of the cluster, such as `{"a100": 1}`."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that the stage and its workers may run on, as `ray start --labels` or the
    groups of a Kubernetes cluster give them, such as `{"accelerator": "eight"}`."""
    retries: int = Field(1, ge=0, le=10)
    """How often Prefect runs the stage again after its worker was lost. Errors are not retried."""
