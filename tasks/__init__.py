"""What a round does: one folder a stage, named by its verb. Nothing here knows Prefect."""

import os

# Stages run side by side. By default OpenMP's threads wait by spinning, and two processes that spin
# on the same cores slow each other down tenfold (measured). Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
