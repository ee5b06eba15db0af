"""The command ``taylorseer-fx``."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from taylorseer_fx.version import __version__

MODELS = ("digits", "fashion")  # with trained weights in the package; ``taylorseer_fx.shipped`` has them
EXTRAS = {"gradio": "app", "ray": "ray", "pyarrow": "ray"}  # the extra that brings a package; others come with the command's


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="taylorseer-fx", description="Forecast most steps of a Diffusion Transformer.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_demo, _add_app, _add_plan, _add_calibrate, _add_sample, _add_bench, _add_doctor):
        add(commands)
    args = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "taylorseer_fx":
            raise
        extra = EXTRAS.get((error.name or "").partition(".")[0], "demo")
        print(f'taylorseer-fx {args.command} needs {error.name}: pip install "taylorseer-fx[{extra}]"', file=sys.stderr)
        return 1


def _begin() -> None:
    """Print a first line at once, since importing torch and diffusers takes seconds."""
    print(f"taylorseer-fx {__version__}: loading torch and diffusers", flush=True)


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = commands.add_parser("demo", help="generate pictures three ways, and show time and pictures side by side")
    demo.add_argument("--model", choices=MODELS, default=MODELS[0], help="one of the two that ship (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="fewer pictures and steps")
    demo.add_argument(
        "--out", type=Path, default=Path("taylorseer-demo.png"), help="where the picture goes (default: %(default)s)"
    )
    demo.add_argument("--json", type=Path, help="where to write the measured numbers as well")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from rich.console import Console

    _begin()
    with _without_torchao():
        from taylorseer_fx.demo.main import run_demo
        from taylorseer_fx.demo.runs import demo_config

    run_demo(demo_config(args.model, args.quick), args.out, Console(), args.json)
    return 0


def _add_app(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    app = commands.add_parser("app", help="choose settings on a page of this machine, and see pictures, steps and seconds")
    app.add_argument("--port", type=int, default=7860, help="of the page; 0 for any that is free (default: %(default)s)")
    app.add_argument("--open", action="store_true", dest="opens", help="open the page in a browser")
    app.set_defaults(run=_app)


def _app(args: argparse.Namespace) -> int:
    from taylorseer_fx.errors import ConfigError

    with _without_torchao():
        from taylorseer_fx.app.main import run_app
    try:
        run_app(args.port, args.opens, lambda text: print(text, flush=True))
    except ConfigError as error:
        print(f"taylorseer-fx app: {error}", file=sys.stderr)
        return 2
    return 0


def _add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    plan = commands.add_parser("plan", help="estimate savings and costs on a full-size model, without weights or GPU")
    plan.add_argument("model", nargs="?", help="a name of --list")
    plan.add_argument("--list", action="store_true", dest="list_models", help="the models known by name")
    plan.add_argument("--steps", type=int, help="denoising steps (default: what the model's pipeline defaults to)")
    plan.add_argument("--interval", type=int, help="steps from one full step to the next (default: as the backend's)")
    plan.add_argument("--warmup", type=int, help="full steps at the beginning (default: as the backend's)")
    plan.add_argument("--full-steps", type=_step_list, metavar="0,1,4,...", help="the full steps, in place of both")
    plan.add_argument("--speedup", type=float, help="steps over full steps, in growing gaps, in place of all three")
    plan.add_argument("--buffer-dtype", help="dtype of the buffers, such as bfloat16 (default: the features' own)")
    plan.add_argument(
        "--world-size", type=int, default=1, help="ranks that share the model; figures are those of one (default: 1)"
    )
    plan.add_argument("--share", default="ulysses", help="how: tensor, ulysses, ring or simple_fsdp (default: %(default)s)")
    plan.set_defaults(run=_plan)


def _add_calibrate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    calibrate = commands.add_parser(
        "calibrate", help="find where the full steps of a shipped model should stand, and keep a plan"
    )
    calibrate.add_argument("model", choices=MODELS, nargs="?", default=MODELS[0], help="default: %(default)s")
    calibrate.add_argument("--steps", type=int, default=50, help="denoising steps (default: %(default)s)")
    calibrate.add_argument(
        "--full", type=_step_list, default=(8, 10, 12, 16), metavar="8,10,...", help="numbers of full steps (default: 8,10,12,16)"
    )
    calibrate.add_argument("--order", type=int, default=1, help="order of the polynomial (default: %(default)s)")
    calibrate.add_argument("--granularity", choices=("module", "stack"), default="module", help="default: %(default)s")
    calibrate.add_argument("--guidance", type=float, default=2.0, help="guidance scale (default: %(default)s)")
    calibrate.add_argument("--samples", type=int, default=20, help="pictures to choose by, and as many to check on (default: 20)")
    calibrate.add_argument("--out", type=Path, help="the plan file (default: MODEL.plan.json)")
    calibrate.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    from rich.console import Console

    _begin()
    from taylorseer_fx.errors import ConfigError

    with _without_torchao():
        from taylorseer_fx.calibrate_command import Job, run_calibrate
    job = Job(args.model, args.steps, args.full, args.order, args.granularity, args.guidance, args.samples)
    try:
        run_calibrate(job, args.out or Path(f"{args.model}.plan.json"), Console())
    except ConfigError as error:
        print(f"taylorseer-fx calibrate: {error}", file=sys.stderr)
        return 2
    return 0


def _step_list(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _plan(args: argparse.Namespace) -> int:
    from rich.console import Console

    with _without_torchao():
        from taylorseer_fx.bench.geometries import GEOMETRIES
        from taylorseer_fx.bench.plan_command import PLANNED_SETTINGS, PlanSettings, list_models, print_plan
    from taylorseer_fx.errors import ConfigError

    if args.list_models:
        list_models(Console())
        return 0
    if args.model not in GEOMETRIES:
        return _unknown("model", args.model, list(GEOMETRIES))
    try:
        given = {name: value for name in PLANNED_SETTINGS if (value := getattr(args, name)) is not None}
        print_plan(args.model, PlanSettings(args.steps, given, world_size=args.world_size, way=args.share), Console())
    except ConfigError as error:
        print(f"taylorseer-fx plan: {error}", file=sys.stderr)
        return 2
    return 0


def _add_sample(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "draw many pictures of a shipped model with several workers, of a Ray of its own or of a cluster; goes on where it was"
    sample = commands.add_parser("sample", help=text)
    sample.add_argument("--model", choices=MODELS, default=MODELS[0], help="one of the two that ship (default: %(default)s)")
    sample.add_argument("--count", type=int, default=100, help="pictures, of the classes in turn (default: %(default)s)")
    sample.add_argument("--workers", type=int, default=2, help="processes that draw, a core each (default: %(default)s)")
    sample.add_argument("--address", help='of a Ray cluster: "auto" or HOST:PORT (default: a Ray of this process)')
    sample.add_argument("--out", type=Path, help="folder of the pictures (default: MODEL-samples)")
    sample.add_argument("--files", choices=("parquet", "png"), default="parquet", help="what is written (default: %(default)s)")
    sample.add_argument("--steps", type=int, default=50, help="denoising steps (default: %(default)s)")
    sample.add_argument("--speedup", type=float, default=3.0, help="steps over full steps (default: %(default)s)")
    sample.add_argument("--order", type=int, default=1, help="of the polynomial (default: %(default)s)")
    sample.add_argument("--granularity", choices=("module", "stack"), default="module", help="default: %(default)s")
    sample.add_argument("--guidance", type=float, default=2.0, help="scale (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    sample.add_argument("--batch", type=int, default=50, help="pictures in one call of the model (default: %(default)s)")
    sample.set_defaults(run=_sample)


def _sample(args: argparse.Namespace) -> int:
    from rich.console import Console

    from taylorseer_fx.errors import ConfigError

    with _without_torchao():
        from taylorseer_fx.ray.command import Job, run_sample
    schedule = {"num_steps": args.steps, "speedup": args.speedup, "order": args.order, "granularity": args.granularity}
    drawing = {"guidance": args.guidance, "seed": args.seed, "batch_size": args.batch, "files": args.files}
    out = args.out or Path(f"{args.model}-samples")
    try:
        run_sample(Job(args.model, args.count, args.workers, **schedule, **drawing), out, Console(), args.address)
    except ConfigError as error:
        print(f"taylorseer-fx sample: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"taylorseer-fx sample: stopped; the same command goes on with what is in {out}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _without_torchao() -> Iterator[None]:
    """Keep diffusers from loading torchao, should it be there: nothing is quantised here, and it would begin the screen with its
    own troubles. Its wheels hold CUDA extensions, which a torch for the CPU cannot load, and no release has all the names that
    diffusers looks for.
    """
    if "torchao" in sys.modules:
        yield
        return
    sys.modules["torchao"] = None  # type: ignore[assignment]  # what Python takes for: there is none
    try:
        yield
    finally:
        del sys.modules["torchao"]


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = commands.add_parser("bench", help="compare with torch.compile, fewer steps and other caches: time, memory, fidelity")
    bench.add_argument(
        "workloads",
        nargs="*",
        metavar="workload",
        help="digits dit-xl2 flux sd3 wan tiny-... (default: digits dit-xl2 tiny-fluxpipeline)",
    )
    bench.add_argument("--methods", choices=("few", "main", "all"), default="main", help="default: %(default)s")
    bench.add_argument("--rounds", type=int, default=3, help="rounds, each a run of baseline and method (default: %(default)s)")
    bench.add_argument("--warm-start", action="store_true", help="also the seconds of a first run with warm caches")
    bench.add_argument(
        "--samples", type=int, default=0, help="digits: pictures per method for the Frechet distance (default: none)"
    )
    bench.add_argument("--workers", type=int, default=0, help="processes of Ray that draw these (default: this process)")
    bench.add_argument("--out", type=Path, default=Path("taylorseer-bench"), help="folder of the report (default: %(default)s)")
    bench.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    from rich.console import Console

    _begin()
    from taylorseer_fx.bench.main import run_bench
    from taylorseer_fx.bench.measure import MeasureSettings
    from taylorseer_fx.bench.suite import DEFAULT, entries

    unknown = [name for name in args.workloads if name not in entries()]
    if unknown:
        return _unknown("workload", unknown[0], list(entries()))
    if args.rounds < 1:
        print(f"taylorseer-fx bench: --rounds must be at least 1, got {args.rounds}", file=sys.stderr)
        return 2
    if args.workers < 0:
        print(f"taylorseer-fx bench: --workers must be at least 0, got {args.workers}", file=sys.stderr)
        return 2
    settings = MeasureSettings(args.rounds, args.warm_start, args.samples, args.workers)
    run_bench(args.workloads or DEFAULT, settings, args.out, Console(), args.methods)
    return 0


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "versions, machine, compilers, caches and a self-test of seconds: what a bug report needs"
    commands.add_parser("doctor", help=text).set_defaults(run=_doctor)


def _doctor(_args: argparse.Namespace) -> int:
    with _without_torchao():
        from taylorseer_fx.doctor.main import examine

        return 0 if examine(lambda text: print(text, flush=True)) else 1


def _unknown(what: str, got: str | None, known: Sequence[str]) -> int:
    print(f"taylorseer-fx: {what} must be one of {', '.join(known)}, got {got!r}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
