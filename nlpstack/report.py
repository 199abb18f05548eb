"""Pictures of losses and attention, and pages that ask nothing of any other place; matplotlib is the extra `report`."""

import base64
import io
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nlpstack.errors import ConfigError, DataError
from nlpstack.files import write_file
from nlpstack.results import listed
from nlpstack.train.run import LOSS_PICTURE, read_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL = "pip install 'nlpstack[report]'"
_FONT = "DejaVu Sans"  # comes with matplotlib
_DPI = 150
_FEW = 60  # points that are drawn one by one as well
_LABEL_CHARS = 16  # of a token on an axis
_LABEL_INCHES = 0.14  # from one token's label to the next
_GAP_INCHES = 0.2  # between maps, for their names


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib in its own colours whatever the user's settings are, and silent; put back afterwards."""
    # It warns where the home folder cannot hold its list of fonts and when it makes it; neither changes a picture.
    logger = logging.getLogger("matplotlib")
    with ExitStack() as undo:
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        from matplotlib import style

        undo.enter_context(style.context(["default", {"text.parse_math": False, "font.family": [_FONT]}]))
        yield


def png(figure: "Figure", **options: Any) -> bytes:
    """A figure as the bytes of a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None}, **options)
    return file.getvalue()


def loss_curves(log: Path) -> dict[str, list[tuple[int, float]]]:
    """The losses "train" and "val" of a metrics.jsonl, in nats a token, and "lr", as (step, value); not finite: nan."""
    curves: dict[str, list[tuple[int, float]]] = {"train": [], "val": [], "lr": []}
    with open(log, "rb") as file:
        for line_no, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                step = int(record["step"])
                if "loss" in record:
                    curves["train"].append((step, _number(record["loss"])))
                    curves["lr"].append((step, _number(record["lr"])))
                if "loss" in record.get("val", {}):
                    curves["val"].append((step, _number(record["val"]["loss"])))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                shown = line[:60].decode(errors="replace")
                raise DataError(f"{log}:{line_no}: not a record of a step or a validation: {shown!r}") from error
    return curves


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def loss_picture(run: Path) -> bytes:
    """A PNG, 800 x 500, of a run's losses over its steps, with the learning rate below and the last scores above."""
    curves = loss_curves(run / "metrics.jsonl")
    last = ""
    with suppress(LookupError, TypeError, ValueError, AttributeError):  # there are none, or none that eval wrote
        name, value = next(iter(read_results(run)["run"]["val"].items()), ("", None))
        last = f": val {name} {_number(value):.4f}" * bool(name)
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        title = f"{run.resolve().name}{last}"
        unknown = use_fonts_for(title)
        figure = Figure(figsize=(8, 5), dpi=100)
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        figure.subplots_adjust(left=0.1, right=0.97, top=0.92, bottom=0.1, hspace=0.08)
        for axes, points, label, colour, marker in (
            (losses, curves["train"], "training", "C0", "."),
            (losses, curves["val"], "validation", "C1", "o"),
            (rates, curves["lr"], "learning rate", "C2", "."),
        ):
            steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
            axes.plot(steps, values, label=label, color=colour, marker=marker if len(points) <= _FEW else "")
            axes.grid(visible=True, alpha=0.3)
        losses.set(title=title.translate(unknown), ylabel="loss (nats a token)")
        losses.legend(loc="upper right")
        rates.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
        rates.xaxis.set_major_locator(MaxNLocator(integer=True))
        return png(figure)


def add_loss_picture(run: Path, note: Callable[[str], None]) -> None:
    """Put loss.png into a finished run's folder, or say why not: a run never fails for want of its picture."""
    picture = run / LOSS_PICTURE
    try:
        picture.unlink(missing_ok=True)  # of the run when it was shorter
        if can_draw():
            write_file(picture, loss_picture(run))
            note(f"{picture}: the losses as a picture")
        else:
            note(f"{LOSS_PICTURE}: left out, {INSTALL}")
    except Exception as error:  # whatever matplotlib stumbles over: all else of the run is written
        reason = " ".join(str(error).split())
        note(f"warning: {LOSS_PICTURE} is left out, it could not be drawn ({type(error).__name__}: {reason})")


def check_report() -> None:
    """Raise ConfigError where no page can be made: known before the work."""
    if not can_draw() or find_spec("jinja2") is None:
        raise ConfigError(f"--report: needs matplotlib and jinja2; {INSTALL}")


def report_page(results: Sequence[Mapping[str, Any]]) -> str:
    """The HTML page of results as `evaluate` returns them; all that comes from data is escaped."""
    check_report()
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = _shown
    page = environment.from_string(Path(__file__).with_name("report_page.html").read_text(encoding="utf-8"))
    return page.render(results=[{**one, "listed": list(listed(one)), "losses": _losses(one)} for one in results])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return (" / " if any(" " in str(one) for one in value) else " ").join(map(str, value))  # texts, or tags
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _losses(result: Mapping[str, Any]) -> str:
    run = Path(result["model"])
    return base64.b64encode(loss_picture(run)).decode() if (run / "metrics.jsonl").exists() else ""


class AttentionPattern(NamedTuple):
    """Attention weights of one text, with what it takes to draw them."""

    weights: np.ndarray  # (L, H, T, T): [l, h, t, s] is how much of token s token t takes; 0 to 1
    layers: Sequence[int]  # the number of each of the L in the model, from 0
    heads: Sequence[int]
    tokens: Sequence[bytes]  # UTF-8 of each of the T
    causal: bool  # a token does not see those after it
    model: str  # its name


def token_label(token: bytes) -> str:
    """A token as it is written on an axis: a space as `·`, a line end as `\\n`, bytes that are no text as `<0xE2>`."""
    signs = (sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in _text_of(token))
    return "".join(signs).replace(" ", "·")


def _text_of(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:  # a part of a character
        return "".join(f"<0x{byte:02X}>" for byte in token)


def attention_page(pattern: AttentionPattern, *, layer: int, head: int) -> str:
    """An HTML page of all layers and heads, `layer` and `head` chosen at first; it loads nothing from anywhere."""
    values: dict[str, Any] = {"model": pattern.model, "causal": pattern.causal}
    values |= {"layers": len(pattern.layers), "heads": len(pattern.heads), "chosen_layer": layer, "chosen_head": head}
    values |= {name: list(map(read, pattern.tokens)) for name, read in (("texts", _text_of), ("labels", token_label))}
    # Square roots: in a byte, small weights keep as many digits as large ones.
    packed = zlib.compress(np.rint(np.sqrt(pattern.weights) * 255).astype(np.uint8))
    values["weights"] = base64.b64encode(packed).decode()
    text = json.dumps(values, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")  # no tag can begin in it
    return Path(__file__).with_name("report_attention.html").read_text(encoding="utf-8").replace(">DATA<", f">{text}<")


@drawing()
def attention_picture(pattern: AttentionPattern) -> bytes:
    """A PNG of a map for each layer and head, side by side, with its tokens, or as many of them as can be read."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    n_layers, n_heads, n_tokens, _ = pattern.weights.shape
    n_maps = n_layers * n_heads
    columns = n_heads if min(n_layers, n_heads) > 1 else math.ceil(math.sqrt(n_maps))
    rows = math.ceil(n_maps / columns)
    inches = min(12.0, max(3.5, 0.2 * n_tokens)) if n_maps == 1 else max(0.8, min(3.0, 40 / max(rows, columns)))
    block = math.ceil(n_tokens / int(inches * _DPI))  # where tokens outnumber dots, a dot is the largest weight of many
    starts = np.arange(0, n_tokens, block)
    side, gap = len(starts), math.ceil(_GAP_INCHES / inches * len(starts))  # dots of a map, and between maps
    tiles = np.full((rows, columns, side + gap, side + gap), np.nan, dtype=np.float32)
    for number, weights in enumerate(pattern.weights.reshape(-1, n_tokens, n_tokens)):
        if pattern.causal:
            weights = np.where(np.tri(n_tokens, dtype=bool), weights, np.nan)  # what a token cannot see stays blank
        tiles[divmod(number, columns)][:side, :side] = np.fmax.reduceat(np.fmax.reduceat(weights, starts), starts, 1)
    whole = tiles.transpose(0, 2, 1, 3).reshape(rows * (side + gap), columns * (side + gap))[:-gap, :-gap]
    labels = [token_label(token) for token in pattern.tokens]
    labels = [label if len(label) <= _LABEL_CHARS else label[: _LABEL_CHARS - 1] + "…" for label in labels]
    unknown = use_fonts_for("".join(labels) + pattern.model)
    step = math.ceil(_LABEL_INCHES * n_tokens / inches)  # one token in so many is named
    names = [label.translate(unknown) for label in labels[::step]]
    places = (np.arange(0, n_tokens, step) + 0.5) / block - 0.5
    figure = Figure(figsize=(whole.shape[1] / side * inches, whole.shape[0] / side * inches))
    axes = figure.add_axes((0, 0, 1, 1))
    image = axes.imshow(whole, norm=PowerNorm(0.5, vmin=0, vmax=1), cmap="viridis", interpolation="nearest")
    axes.set_xticks(np.add.outer(np.arange(columns) * (side + gap), places).ravel(), names * columns, rotation=90)
    axes.set_yticks(np.add.outer(np.arange(rows) * (side + gap), places).ravel(), names * rows)
    axes.tick_params(length=2, labelsize=8)
    axes.spines[:].set_visible(False)
    for number, (layer, head) in enumerate(product(pattern.layers, pattern.heads)):
        top, left = (place * (side + gap) - 0.5 for place in divmod(number, columns))
        axes.annotate(f"layer {layer}, head {head}", (left, top), (0, 3), textcoords="offset points", fontsize=8)
    axes.set_title(pattern.model.translate(unknown), pad=18)
    axes.set_xlabel("token looked at" + (f" (one in {step} is named)" if step > 1 else ""))
    axes.set_ylabel("token that looks")
    scale = figure.add_axes((1 + 0.15 / figure.get_figwidth(), 0, 0.12 / figure.get_figwidth(), 1))
    figure.colorbar(image, cax=scale, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], label="weight")
    return png(figure, dpi=_DPI, bbox_inches="tight", pad_inches=0.15)


def use_fonts_for(text: str) -> dict[int, str]:
    """From now on, draw with the fonts that show the text together; each sign none of them has, and its code point."""
    from matplotlib import font_manager, rcParams

    families, missing = [_FONT], set(text)
    upright = [entry for entry in font_manager.fontManager.ttflist if (entry.style, entry.weight) == ("normal", 400)]
    for entry in sorted(upright, key=lambda entry: (entry.name != _FONT, entry.name, entry.fname)):
        if not missing or entry.name.startswith("Last Resort"):  # which has a box for everything
            continue
        try:
            font = font_manager.get_font(entry.fname)
        except (OSError, RuntimeError):  # deleted since, or not readable to matplotlib
            continue
        shown = {sign for sign in missing if font.get_char_index(ord(sign))} if font.scalable else set()
        if shown and entry.name not in families:
            families.append(entry.name)
        missing -= shown
    rcParams["font.family"] = families
    return {ord(sign): f"U+{ord(sign):04X}" for sign in missing}
