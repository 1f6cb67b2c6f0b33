"""How far this package is from its references, measured anew on small random models: the table of docs/parity.md.

    python -m benchmarks.parity [--machine "AMD EPYC Genoa, 2 cores"] [--only blip]

References are transformers (installed), the package efficientnet-lite-pytorch, and tensors that LAVIS' own code
recorded: of BLIP-2 in tests/fixtures/lavis, of BLIP and CLIP in a folder that OPENBLIP_LAVIS_ZOO names, without which
those lines are left out. Float32, one thread. Leaves with exit code 1 when a limit is exceeded.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from rich.progress import track

from tests.pairs import blip_transformers, efficientnet, folders, generation, lavis, opt, qformer, t5, vit
from tests.pairs.blip import VARIABLE, recordings
from tests.parity.blip import official_checks, recorded_checks
from tests.parity.table import LIMIT, Check, Gap, table, worst

RECORDED = 2e-6
RECORDED_LOGITS = 2e-5


def both(pairs: Iterable[tuple[float, float]]) -> list[Gap]:
    """The worst of outputs and of gradients."""
    outputs, gradients = zip(*pairs, strict=True)
    return [Gap("outputs", worst(outputs), LIMIT), Gap("gradients", worst(gradients), LIMIT)]


def recorded(gaps: Mapping[str, float], names: Mapping[str, str], limit: float = RECORDED) -> list[Gap]:
    """Some of the recorded differences; `names` says what each is called in the table."""
    return [Gap(shown, gaps[name], limit) for name, shown in names.items()]


def efficientnets() -> list[Gap]:
    squares = [efficientnet.patch_gap(name, size) for name in efficientnet.SCALES for size in efficientnet.SIZES]
    rectangles = [efficientnet.rectangle_gaps(shape) for shape in efficientnet.SHAPES]
    return both([*((gap, 0.0) for gap in squares), *rectangles])


def texts_of(kind: str) -> list[Gap]:
    found = [generation.compare(kind, beams) for beams in range(1, 6)]
    count = sum(one.stopped.total() for one in found)
    unequal = sum(len(one.unequal) for one in found)
    return [Gap("ids", unequal, 0, count), Gap("beam scores", worst(one.score_gap for one in found), LIMIT)]


def writer(kind: str) -> list[Gap]:
    with tempfile.TemporaryDirectory() as folder:
        found = folders.written_by(kind, Path(folder))
    return [
        Gap("features", found.features, LIMIT),
        Gap("visual prompt", found.prompt, LIMIT),
        Gap("logits", found.logits, LIMIT),
        Gap("ids", found.unequal, 0, found.texts),
    ]


def matcher() -> list[Gap]:
    with tempfile.TemporaryDirectory() as folder:
        found = folders.matched(Path(folder))
    return [
        Gap("ITM probability", found.itm, LIMIT),
        Gap("ITC cosine", found.itc, LIMIT),
        Gap("rankings", found.unequal, 0, found.ranked),
    ]


def lavis_features() -> list[Gap]:
    gaps = lavis.feature_gaps()
    modes = worst(gap for name, gap in gaps.items() if name.startswith("feat_"))
    return [
        Gap("ViT", gaps["vit_out"], 5e-6),  # whose values reach 5.5
        *recorded(gaps, {"ln_vision_out": "behind ln_vision", "pos_embed_interp_6x6": "interpolated positions"}),
        Gap("`extract_features`, all modes", modes, RECORDED),
    ]


def lavis_stage2() -> list[Gap]:
    gaps = lavis.stage2_gaps()
    found = recorded(gaps, {"query_output": "queries", "inputs_opt": "visual prompt", "loss": "loss"})
    return [*found, Gap("logits", gaps["logits"], RECORDED_LOGITS)]


def lavis_t5() -> list[Gap]:
    names = {"inputs_t5": "visual prompt", "loss": "loss", "logits": "logits"}
    return recorded(lavis.t5_gaps(), names, RECORDED_LOGITS)


def lavis_losses() -> list[Gap]:
    found = [lavis.loss_gaps(name) for name in ("eval", "imageid")]
    return [
        Gap(name, worst(gaps[key] for gaps in found), RECORDED)
        for name, key in (("ITC", "loss_itc"), ("ITM", "loss_itm"), ("ITG", "loss_lm"))
    ]


def lavis_texts() -> list[Gap]:
    kinds = {"OPT captions": lavis.opt_captions, "OPT answers": lavis.opt_answers, "T5 captions": lavis.t5_captions}
    gaps = []
    for name, generate in kinds.items():
        rows = [pair for beams in (1, 5) for pair in zip(*generate(beams), strict=True)]
        gaps.append(Gap(name, sum(ours != theirs for ours, theirs in rows), 0, len(rows)))
    return gaps


def check_vit(name: str, reference: str, kind: str) -> Check:
    return Check(
        name,
        f"transformers {reference}",
        lambda: both(vit.gaps(kind, size) for size in vit.IMAGE_SIZES),
        "nn/test_vit.py",
    )


def check_qformer(name: str, reference: str, measure: Callable[[], Iterable[tuple[float, float]]]) -> Check:
    return Check(f"Q-Former, {name}", f"transformers {reference}", lambda: both(measure()), "nn/test_qformer.py")


CHECKS = [
    Check("pixels", "transformers BlipImageProcessorPil", lambda: [Gap("pixels", folders.pixel_gap(224), 0)],
          "images/test_decode.py"),
    check_vit("ViT, EVA-CLIP layout", "Blip2VisionModel", "blip2"),
    check_vit("ViT, CLIP layout", "CLIPVisionModel", "clip"),
    check_vit("ViT with LayerScale", "Dinov2Model", "dinov2"),
    Check("EfficientNet-Lite0, 1, 2", "efficientnet-lite-pytorch", efficientnets, "nn/test_efficientnet.py"),
    check_qformer("image pass", "Blip2QFormerModel",
                  lambda: [qformer.image_gaps(*sizes) for sizes in qformer.IMAGE_PASSES]),
    check_qformer("text pass", "Blip2ForImageTextRetrieval",
                  lambda: [qformer.text_gaps(*sizes) for sizes in qformer.TEXT_PASSES]),
    check_qformer("ITM", "Blip2ForImageTextRetrieval",
                  lambda: [qformer.itm_gaps(length) for length in qformer.ITM_LENGTHS]),
    check_qformer("ITC", "Blip2ForImageTextRetrieval", lambda: [qformer.itc_gaps()]),
    Check("OPT, four layouts", "transformers OPTForCausalLM",
          lambda: both(opt.gaps(variant, *batch) for variant in opt.VARIANTS for batch in opt.BATCHES),
          "nn/test_opt.py"),
    Check("T5, four layouts", "transformers T5ForConditionalGeneration",
          lambda: both(t5.gaps(variant, *batch) for variant in t5.VARIANTS for batch in t5.BATCHES),
          "nn/test_t5.py"),
    Check("OPT, greedy and beam 2 to 5, 250 random configurations", "transformers `generate`",
          lambda: texts_of("opt"), "generation/test_parity.py"),
    Check("T5, greedy and beam 2 to 5, 200 random configurations", "transformers `generate`",
          lambda: texts_of("t5"), "generation/test_parity.py"),
    Check("BLIP-2 with OPT, from its folder", "transformers Blip2ForConditionalGeneration",
          lambda: writer("opt"), "checkpoints/transformers/test_read.py"),
    Check("BLIP-2 with FLAN-T5, from its folder", "transformers Blip2ForConditionalGeneration",
          lambda: writer("flan"), "checkpoints/test_transformers_t5.py"),
    Check("BLIP-2 with T5 1.0, from its folder", "transformers Blip2ForConditionalGeneration",
          lambda: writer("t5"), "checkpoints/test_transformers_t5.py"),
    Check("matching: all pairs, and searches by LAVIS' rule", "transformers Blip2ForImageTextRetrieval",
          matcher, "matching/"),
    Check("BLIP: captions, questions, matching", "transformers' BLIP classes",
          lambda: [Gap(name, gap, LIMIT) for name, gap in blip_transformers.gaps().items()], "nn/test_blip.py"),
    *official_checks(),
    Check("features", "LAVIS' recordings", lavis_features, "nn/test_lavis_reference.py"),
    Check("ITM and ITC scores", "LAVIS' recordings",
          lambda: recorded(lavis.score_gaps(), {"itm_logits": "ITM logits", "itc_scores": "ITC cosines"}),
          "nn/test_lavis_reference.py"),
    Check("stage-1 losses, recorded negatives", "LAVIS' recordings", lavis_losses, "nn/test_lavis_reference.py"),
    Check("ten stage-1 gradients", "LAVIS' recordings",
          lambda: [Gap("gradients", worst(lavis.gradient_gaps().values()), RECORDED)], "nn/test_lavis_reference.py"),
    Check("stage 2 with OPT", "LAVIS' recordings", lavis_stage2, "nn/test_lavis_reference.py"),
    Check("stage 2 with T5", "LAVIS' recordings", lavis_t5, "nn/test_t5.py"),
    Check("texts, greedy and beam 5", "LAVIS' recordings", lavis_texts, "generation/test_lavis_reference.py"),
]  # fmt: skip


def machine() -> str:
    """The processor, as the system calls it."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def run(checks: Sequence[Check], hardware: str) -> int:
    """Print the table; the exit code."""
    measured = [(check, check.measure()) for check in track(checks, "measuring", disable=not sys.stderr.isatty())]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "efficientnet-lite-pytorch"))
    today = datetime.date.today().isoformat()
    print(f"Measured {today} with Python {platform.python_version()}, {versions}; {hardware}, one thread.\n")
    print(table(measured))
    return 0 if all(gap.within for _, gaps in measured for gap in gaps) else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=machine(), help="what to call this machine")
    parser.add_argument("--only", default="", metavar="WORD", help="lines whose component has this word in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # transformers has many to say about models that nobody trained
    logging.disable(logging.WARNING)
    import_module("transformers.utils.logging").disable_progress_bar()
    folder = recordings()
    checks = [*CHECKS, *(recorded_checks(folder) if folder is not None else [])]
    code = run([check for check in checks if options.only.lower() in check.component.lower()], options.machine)
    if folder is None:
        print(f"\nLeft out: lines of LAVIS' recordings of BLIP and CLIP, as {VARIABLE} names no folder of them.")
    sys.exit(code)


if __name__ == "__main__":
    main()
