"""The names that every folder shares: the two kinds of step, and the passes that can be left out."""

import enum

# The passes that a graph is right without, and what is worse then.
OPTIONAL = {
    "find_stored": "every feature is stored whole, which takes more memory",
    "find_cut_branches": "branches that a graph break cuts off are not listed",
    "narrow": "a forecast step computes more than is read",
    "sum_few_rows": "a forecast step on a CPU reads the weights of its gates more slowly",
    "join_slices": "a full step on a GPU copies features of which only a part is stored",
    "store_early": "a full step on a GPU copies every feature by a kernel of its own",
    "patches_as_products": "a forecast step on a GPU reads the first blocks across memory",
    "sum_small_weights": "each small product of a step on a GPU is a launch of its own",
    "fold_repeats": "every block of a forecast step is compiled by itself, which takes longer",
}


class StepKind(enum.Enum):
    """The work of a step: execute every region, or forecast it."""

    FULL = "full"
    FORECAST = "forecast"
