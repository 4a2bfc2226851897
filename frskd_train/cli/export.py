"""`frskd export`: write a student as ONNX or as a program of torch.export."""

import argparse
from collections.abc import Sequence
from pathlib import Path

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and export."""
    parser = argparse.ArgumentParser(
        "frskd export", description="Write a student as ONNX (.onnx) or as a program of torch.export (.pt2)."
    )
    parser.add_argument("student", help="folder of a run or a student, hf-hub:OWNER/NAME, or a name with weights")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx"], help="formats (default: onnx)")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="file or folder to write; by default the run's or current folder"
    )
    parser.add_argument(
        "--img-size", nargs="+", type=int, metavar="N", help="height and width; only for segmentation students"
    )
    parser.add_argument(
        "--any-size",
        action="store_true",
        help="ONNX of a segmentation student for images of any size; may take minutes",
    )
    options = parser.parse_args(arguments)
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_timm.errors import UserError
    from frskd_train.found_student import find_exported
    from frskd_train.report.formats import export_onnx, export_program

    if options.any_size and (options.img_size or options.format != ["onnx"]):
        raise UserError("--any-size is for --format onnx without --img-size: leave one of them out.")
    suffixes = [FORMATS[name] for name in options.format]
    usable = "", *(suffixes if len(suffixes) == 1 else ())
    if options.output and options.output.suffix not in usable and not options.output.is_dir():
        raise UserError(
            f"--output {options.output} does not fit --format {' '.join(options.format)}: give a folder"
            f"{''.join(f', or a name that ends in {suffix}' for suffix in usable if suffix)}."
        )
    found = find_exported(options.student)
    size = found.image_size(options.img_size)
    for suffix in suffixes:
        path = found.place / f"{found.name}{suffix}"
        if options.output:
            path = options.output if options.output.suffix == suffix else options.output / path.name
        if suffix == ".onnx":
            export_onnx(found.student.path, path, size=size, any_size=options.any_size)
        else:
            export_program(found.student.path, path, size=size)
        print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB); its logits equal the student's.")
