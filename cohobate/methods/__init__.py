"""Methods of training a phase: SFT, KD, on-policy distillation, DPO, mutual learning."""
