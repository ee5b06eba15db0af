"""RFD4: tokens updated under a bias made from pairs of tokens, and the pairs updated from the tokens."""

import torch
from diffusers.models.transformers import RFD4ProteinaTransformer
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

TOKENS = 32
LATENT = 4


def rfd4() -> nn.Module:
    return randomize(
        RFD4ProteinaTransformer(
            nlayers=4,  # with a pair update after the first and the third
            token_dim=48,
            nheads=4,
            dim_cond=16,
            pair_repr_dim=16,
            latent_dim=LATENT,
            token_type_emb_dim=8,
            t_emb_dim=16,
            seq_sep_dim=4,
            xt_pair_dist_dim=6,
            feats_seq=("xt_bb_ca", "xt_local_latents", "token_type"),
            feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
            feats_pair_repr=("xt_bb_ca_pair_dists", "molecule_idx_pair", "token_bond_path_length"),
            tri_mult_c=16,
            num_sequence_classes=6,
        )
    )


def rfd4_inputs(step: float, seed: int) -> Inputs:
    everywhere = torch.ones(1, TOKENS, dtype=torch.bool)
    index = torch.arange(TOKENS)
    time = torch.full((1,), step / 50)
    conditioning: dict[str, Tensor] = {
        "is_in_context_conditioning": ~everywhere,
        "supports_local_latent": everywhere,
        "molecule_iid": (index // 16)[None],
        "token_bond_path_length": (index[:, None] - index).abs()[None],
    }
    return {
        "bb_ca": smooth((1, TOKENS, 3), step, seed, torch.float32),
        "local_latents": smooth((1, TOKENS, LATENT), step, seed + 1, torch.float32),
        "bb_ca_time": time,
        "local_latents_time": time * time,
        "padding_mask": index[None] < TOKENS - 2,
        "token_type": noise((1, TOKENS), seed, torch.float32).gt(0).long(),
        "conditioning": conditioning,
        "return_dict": False,
    }


VARIANTS = (Variant("RFD4ProteinaTransformer", rfd4, rfd4_inputs, ascending=True),)
