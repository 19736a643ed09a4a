"""Knowledge distillation of language models: the library that the stages of a round share.

Packages, from the lowest to the highest; each imports only those before it:

    data         rows, their files, tokenised examples
    models       checkpoints, where models come from, what they are made of
    fast         forward passes and products that are quicker on a CPU, beside the plain ones
    generation   decoding, continuous batching, likelihoods
    losses       divergences, feature losses, targets, the fused head
    teachers     target sources: live, stored, ensembles, other tokenizers
    training     hyperparameters, the trainer, checkpointing, several processes
    students     initial students: cut, pretrained, random
    methods      what a phase of training does: SFT, KD, on-policy, DPO, mutual, exits
    scoring      verifiers, metrics, judges, reward models, votes
    backends     where a teacher's answers are computed, and the ledger of them
    evaluation   intervals, timing, memory, forgetting
    dvc_bridge   skip, restore or run a stage by DVC's own rules
"""

import os

from cohobate.proxies import exempt_loopback

# Stages run side by side. By default OpenMP's threads wait by spinning, and two processes that spin
# on the same cores slow each other down tenfold (measured). Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Large tensors in large pages, where the kernel grants them: page faults are else an eighth of a
# training step on a CPU (measured). Read when torch is loaded too.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Before any library reads them: Prefect, Ray and services on this machine are not behind a proxy.
exempt_loopback()
