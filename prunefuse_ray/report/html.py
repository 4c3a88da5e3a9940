"""What a report page is made of: escaped tags, numbers as people read them, images, the page around them.

Safe by construction: `tag` escapes every child and attribute that is not already `Html`, so text from data (ids,
labels, file names, configuration) can reach a page only as text.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

DASH = "–"  # stands for "not measured"
THUMBNAIL = 96  # px; larger images are scaled down to it
TINY = 48  # px; images up to this size are shown with hard pixels and stored without loss
MOST_PIXELS = 64_000_000  # an image that decodes to more is not worth the memory
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # those that Pillow decodes itself, in no other program

_VOID = {"img", "meta", "link", "br"}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


class Html(str):
    """Markup that is already safe to put on a page."""

    __slots__ = ()


Child = Any  # Html, text, a number, None (nothing), or an iterable of these


def text(value: Any) -> Html:
    """Any value as text. Control characters and lone surrogates, which HTML cannot hold, become U+FFFD."""
    cleaned = str(value).encode("utf-8", "replace").decode("utf-8")
    return Html(escape(_CONTROL.sub("\ufffd", cleaned), quote=True))


def join(*children: Child) -> Html:
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, Iterable) and not isinstance(child, str | bytes):
            parts.append(join(*child))
        elif child is not None:
            parts.append(text(child))
    return Html("".join(parts))


def tag(name: str, /, *children: Child, **attributes: Any) -> Html:
    """`tag("td", x, class_="num")`; an attribute that is None or False is left out, True stands without a value."""
    written = ""
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written += f" {key}"
        elif value is not None and value is not False:
            written += f' {key}="{text(value)}"'
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


# Numbers as people read them. Each takes None, and what is not finite, for "not measured".


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def scale(largest: float) -> tuple[float, str]:
    """The SI step in which `largest` reads best: (divisor, prefix)."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if largest >= 0.9995 * 10.0**power:  # so that 999,999 reads "1.00 M", not "1000 k"
            return 10.0**power, prefix
    return 1.0, ""


def three_digits(value: float) -> str:
    """Three significant digits, but no exponent and never less than the whole number."""
    for limit, places in ((9.995, 2), (99.95, 1)):
        if abs(value) < limit:
            return f"{value:.{places}f}"
    return f"{value:,.0f}"


def quantity(value: Any, unit: str = "") -> str:
    """`quantity(1.23e9, "MACs")` → "1.23 GMACs"; small whole numbers stay whole."""
    known = number(value)
    if known is None:
        return DASH
    divisor, prefix = scale(abs(known))
    digits = f"{known:.0f}" if divisor == 1.0 and known == int(known) else three_digits(known / divisor)
    return f"{digits} {prefix}{unit}".rstrip()


def count(value: Any) -> str:
    known = number(value)
    return DASH if known is None else f"{known:,.0f}"


def rate(value: Any) -> str:
    """Samples per second; none of a pass whose last start had nothing left to do."""
    known = number(value)
    return DASH if not known else f"{known:.2g}" if known < 10 else f"{known:,.0f}"


def counted(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def percent(share: Any, places: int = 1) -> str:
    known = number(share)
    if known is None:
        return DASH
    if 0 < known < 0.5 * 10 ** (-2 - places):
        return f"<{10.0**-places:.{places}f}%"
    return f"{100 * known:.{places}f}%"


def decimal(value: Any, places: int = 3) -> str:
    known = number(value)
    return DASH if known is None else f"{known:.{places}f}"


def score(value: Any) -> str:
    """A score of any magnitude in few characters."""
    known = number(value)
    if known is None:
        return DASH
    return f"{known:.3f}" if known == 0 or 0.001 <= abs(known) < 1000 else f"{known:.2e}"


def duration(seconds: Any) -> str:
    known = number(seconds)
    if known is None:
        return DASH
    if known < 0.9995:
        return f"{1000 * known:.0f} ms"
    if known < 59.95:
        return f"{known:.1f} s"
    minutes, rest = divmod(round(known), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(known / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(known / 3600), 24)
    return f"{days} d {hours} h"


def span(values: Iterable[Any], written: Callable[[Any], str] = count) -> str:
    """ "2", or "2–8" where the values differ."""
    known = sorted({v for v in map(number, values) if v is not None})
    if not known:
        return DASH
    first, last = written(known[0]), written(known[-1])
    return first if first == last else f"{first}–{last}"


# Pieces of a page.


def tiles(facts: Sequence[tuple[str, Child, Child]]) -> Html:
    """The headline: (name, value, what it is measured against) each."""
    return tag(
        "dl",
        (tag("div", tag("dt", name), tag("dd", value, class_="value"), tag("dd", note)) for name, value, note in facts),
        class_="tiles",
    )


def facts(pairs: Iterable[tuple[str, Child]]) -> Html:
    return tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    left: int = 1,
    groups: Sequence[tuple[str, int]] = (),
    class_: str | None = None,
) -> Html:
    """The first `left` columns hold words, the others numbers. `groups`: (title, columns) above the head."""

    def align(column: int) -> str | None:
        return None if column < left else "num"

    above = tag("tr", (tag("th", title, colspan=width, scope="colgroup") for title, width in groups), class_="groups")
    return tag(
        "div",
        tag(
            "table",
            tag(
                "thead",
                above if groups else None,
                tag("tr", (tag("th", title, scope="col", class_=align(i)) for i, title in enumerate(head))),
            ),
            tag("tbody", (tag("tr", (tag("td", cell, class_=align(i)) for i, cell in enumerate(row))) for row in rows)),
            class_=class_,
        ),
        class_="wide",
    )


def section(key: str, title: str, *children: Child, lead: Child = None) -> Html:
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, *children, id=key)


def figure(svg: Html, caption: Child, *, title: str | None = None) -> Html:
    """A plot under its title, with a sentence on how to read it."""
    return tag("figure", tag("h3", title) if title else None, svg, tag("figcaption", caption))


def swatch(color: str, words: Child) -> Html:
    """A word with the color that stands for it in a plot."""
    return tag("span", tag("i", style=f"background:var(--{color})"), words, class_="swatch")


def details(summary: Child, *children: Child, opened: bool = True) -> Html:
    return tag("details", tag("summary", summary), *children, open=opened)


def image(encoded: bytes, alt: str) -> Html | None:
    """A thumbnail inside the page, or None if the bytes do not decode."""
    try:
        image = _thumbnail(encoded)
    except Exception:  # whatever a codec raises on bytes it does not understand
        return None
    tiny = max(image.size) <= TINY
    kind = "png" if tiny else "jpeg"
    stored = io.BytesIO()
    image.save(stored, kind, **({"optimize": True} if tiny else {"quality": 80}))
    data = base64.b64encode(stored.getvalue()).decode("ascii")
    return tag("img", src=f"data:image/{kind};base64,{data}", alt=alt, class_="tiny" if tiny else None)


def _thumbnail(encoded: bytes) -> Image.Image:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels")
        opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # JPEG decodes at a fraction of its size
        image = _on_white(opened)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """As L or RGB, transparency laid on white."""
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def page(title: str, *children: Child) -> str:
    """A whole page. Its policy forbids it any script and any request, so it is safe to open and to pass on."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, "\n", tag("body", *children), lang="en") + "\n"


STYLE = """
:root {
  --ink: #1b2027; --muted: #5d6773; --line: #dadfe5; --bg: #ffffff; --panel: #f5f7f9; --rest: #b9c2cc;
  --proxy: #2766ad; --fused: #c4561a; --warn: #8a5a00;
  --select: #8a63b8; --label: #b08d2e; --train: #2766ad; --score: #23918a; --fuse: #6f7883; --finetune: #c4561a;
  --other: #9aa3ad;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e8ec; --muted: #9ba6b2; --line: #353d47; --bg: #13171c; --panel: #1b2128; --rest: #56616d;
    --proxy: #6cabf0; --fused: #f2955c; --warn: #e0b050;
    --select: #b795e0; --label: #d9b957; --train: #6cabf0; --score: #4fc2b8; --fuse: #97a2ae; --finetune: #f2955c;
    --other: #6b7580;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 28px 32px 64px; max-width: 1144px; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 4px; }
h3 { font-size: 14px; margin: 0 0 4px; }
p { margin: 0 0 12px; max-width: 76ch; }
section { margin-top: 40px; padding-top: 18px; border-top: 1px solid var(--line); }
code, pre, .id { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em; }
.id, code { overflow-wrap: anywhere; unicode-bidi: isolate; }
.lead, figcaption, .note, dt { color: var(--muted); }
.lead { margin-bottom: 16px; }
.path { color: var(--muted); margin: 2px 0 0; max-width: none; }
.state {
  display: inline-block; margin-left: 10px; padding: 1px 9px; border: 1px solid currentColor; border-radius: 10px;
  font-size: 13px; font-weight: 500; line-height: 1.5; vertical-align: 4px; color: var(--score); white-space: nowrap;
}
.state.running { color: var(--warn); }
.summary { font-size: 17px; margin: 16px 0 18px; }
nav { margin-top: 18px; font-size: 14px; }
a { color: var(--proxy); }
nav a { text-decoration: none; margin-right: 18px; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
dl, dd { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; }
.tiles div { padding: 12px 14px; background: var(--panel); border-radius: 6px; }
.tiles dt { font-size: 13px; }
.tiles dd { font-size: 13px; line-height: 1.35; color: var(--muted); }
.tiles dd.value { font-size: 24px; line-height: 1.25; font-weight: 600; color: var(--ink); white-space: nowrap; }
.facts > div { display: grid; grid-template-columns: 108px 1fr; gap: 10px; padding: 5px 0; align-items: baseline; }
.facts > div + div { border-top: 1px solid var(--line); }
.facts dd { overflow-wrap: anywhere; }
.facts { font-size: 14px; }
.two { display: grid; grid-template-columns: minmax(0, 7fr) minmax(0, 4fr); gap: 16px 40px; align-items: start; }
.even { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: 13px; line-height: 1.45; margin-top: 4px; max-width: 90ch; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif !important; }
.wide { overflow-x: auto; margin-top: 14px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 5px 10px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--muted); vertical-align: bottom; }
td:first-child, th:first-child { padding-left: 0; }
tr { break-inside: avoid; }
tr.groups th { border-bottom: 0; padding-bottom: 0; color: var(--ink); font-weight: 600; }
.num { text-align: right; white-space: nowrap; }
.text td { overflow-wrap: anywhere; }
.text .whole { white-space: nowrap; }
.swatch { white-space: nowrap; margin-right: 14px; }
.swatch i {
  display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 2px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
details { margin-top: 12px; }
summary { cursor: pointer; padding: 4px 0; }
.sheets { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 32px; margin: 4px 0 20px; }
.sheets h3 { font-weight: 500; color: var(--muted); font-size: 13px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(56px, 1fr)); gap: 8px 6px; }
.sheets > div:only-child { grid-column: 1 / -1; }
.sample { min-width: 0; margin: 0; font-size: 11px; line-height: 1.3; }
.sample img, .sample .broken {
  display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--panel); border-radius: 3px;
}
.sample img.tiny { image-rendering: pixelated; }
.sample .broken {
  display: grid; place-items: center; text-align: center; font-size: 10px; color: var(--muted);
  border: 1px dashed var(--rest);
}
.sample b, .sample span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.sample b { font-weight: 600; }
.sample span { color: var(--muted); font-variant-numeric: tabular-nums; }
.texts { list-style: none; margin: 0; padding: 0; font-size: 13px; line-height: 1.4; }
.texts li { padding: 6px 0; border-top: 1px solid var(--line); break-inside: avoid; overflow-wrap: anywhere; }
.texts p { margin: 0; white-space: pre-line; unicode-bidi: isolate; }
.texts div { color: var(--muted); font-size: 12px; }
.texts b { color: var(--ink); }
.config { columns: 2; column-gap: 40px; font-size: 13px; }
.config > div { break-inside: avoid; margin-bottom: 12px; }
.config .facts div { grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); padding: 3px 0; }
.config .facts dd { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12px; }
@media screen and (max-width: 820px) {
  body { padding: 18px 16px 48px; }
  .two, .sheets { grid-template-columns: minmax(0, 1fr); }
  .config { columns: 1; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 12px; }
  nav { display: none; }
  section { margin-top: 22px; padding-top: 12px; }
  h2, h3, summary { break-after: avoid; }
  .sheets { break-inside: avoid; }
  .tiles { grid-template-columns: repeat(5, 1fr); gap: 8px; }
  .tiles dd.value { font-size: 19px; }
  table { font-size: 10.5px; }
  .wide { overflow: visible; }
  th, td { padding: 3px 6px; }
  details::details-content { content-visibility: visible; block-size: auto; }
  img, .tiles div { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
