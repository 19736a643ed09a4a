"""What a round does: a folder a stage, named by its verb, and the rooms they share.

Nothing here knows Prefect."""

import os

from tasks.proxies import exempt_loopback

# Stages run side by side. By default OpenMP's threads wait by spinning, and two processes that spin
# on the same cores slow each other down tenfold (measured). Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Large tensors in large pages, where the kernel grants them: page faults are else an eighth of a
# training step on a CPU (measured). Read when torch is loaded too.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Before any library reads them: Prefect, Ray and services on this machine are not behind a proxy.
exempt_loopback()
