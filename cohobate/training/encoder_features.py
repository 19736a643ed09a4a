"""Feature losses between encoders: their mean over the tokens of each row."""

from torch import Tensor

from cohobate.fast.forward_pass import ForwardOutputs
from cohobate.losses.feature_losses import TokenPositions
from cohobate.losses.layer_matching import LayerMatching


def row_features(
    matching: LayerMatching,
    student: ForwardOutputs,
    teacher: ForwardOutputs,
    mask_BS: Tensor,
    response: Tensor | float,
) -> Tensor:
    """Return each row's weighted loss of each feature term, (B, F): a mean over its tokens.

    Args:
        matching: the terms, with their layer maps and projections.
        student: outputs of its forward pass; differentiable.
        teacher: outputs of its forward pass over the same rows.
        mask_BS: 1 at the rows' tokens.
        response: mean loss of the other terms, for the terms that balance.
    """
    length_B, width = mask_BS.sum(1), mask_BS.shape[1]
    (token_N,) = mask_BS.flatten().nonzero(as_tuple=True)
    row_N = token_N // width
    # an encoder's token attends to the whole row
    positions = TokenPositions(token_N, width, length_B[row_N])
    losses_NF = matching(student, teacher, positions, response)
    total_BF = losses_NF.new_zeros(len(mask_BS), losses_NF.shape[1])
    mean_BF: Tensor = total_BF.index_add(0, row_N, losses_NF) / length_B[:, None]
    return mean_BF
