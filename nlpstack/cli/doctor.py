"""`nlpstack doctor`."""

from typing import Any

import click

from nlpstack.cli.options import complete_folders, echo_json, machine_options, output_options


@click.command("doctor")
@click.option(
    "--out", metavar="DIR", default=".", shell_complete=complete_folders, help="Where runs are to go [default: here]."
)
@click.option("--full", is_flag=True, help="Compile a small function too, which takes long.")
@machine_options
@output_options
def doctor_command(
    out: str, full: bool, device: str | None, threads: int | None, as_json: bool, quiet: bool, debug: bool
) -> None:
    """What this machine has for a run: versions, and each choice with the measurement that speaks for it.

    A problem found is a line that begins with "problem:"; --quiet shows these alone.

    \b
    Example:
      nlpstack doctor --out runs
    """
    from nlpstack.inspection import doctor

    found = doctor(out, device=device or "auto", threads=threads, full=full)
    if as_json:
        echo_json(found)
        return
    if not quiet:
        for name, value in _rows(found):
            click.echo(f"{name:<11}{value}")
    for problem in found["problems"]:
        click.echo(f"problem: {problem}")
    if not found["problems"]:
        click.echo("no problem found")


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    machine, dtype, attention = found["machine"], found["dtype"], found["attention"]
    compiler, disk = found["compiler"], found["disk"]
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        *(
            (f"[{name}]", f"{'installed' if extra['installed'] else 'not installed'}: {extra['gives']}")
            for name, extra in found["extras"].items()
        ),
        ("machine", f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"),
        ("threads", f"{machine['threads']}"),
    ]
    for key, where in (("memory", "memory"), ("gpu_memory", f"gpu {machine.get('gpu')}")):
        if machine.get(f"{key}_bytes"):
            sizes = (machine[f"{key}_bytes"] / 2**30, machine[f"{key}_free_bytes"] / 2**30)
            rows.append((where, f"{sizes[0]:,.1f} GiB, {sizes[1]:,.1f} free"))
    speed = "cannot be written"
    if disk["write_mb_per_second"] is not None:
        speed = f"{disk['write_mb_per_second']:,.0f} MB/s written and forced onto the disk"
    compiles = f", a small function in {compiler['compile_seconds']} s" if compiler["compile_seconds"] else ""
    return [
        *rows,
        ("device", f"{found['device']['choice']} ({found['device']['rule']})"),
        ("dtype", f"{dtype['choice']}: fp32 {dtype['fp32_gflops']:,.0f} GFLOP/s, bf16 {dtype['bf16_gflops']:,.0f}"),
        ("", f"({dtype['rule']})"),
        ("attention", f"{attention['choice']}: plain {attention['plain_ms']} ms, fused {attention['fused_ms']} ms"),
        ("", f"({attention['rule']})"),
        ("compiler", f"{'found' if compiler['found'] else 'none found'}{compiles}"),
        ("disk", f"{disk['path']}: {disk['free_bytes'] / 2**30:,.1f} GiB free, {speed}"),
    ]
