"""The method written independently: it lives in the harness, which times it as well."""

from taylorseer_fx.bench.hook_reference import HookReference

__all__ = ["HookReference"]
