"""The tables of a suite as LaTeX, for a paper; needs only the package booktabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipx.reports.summary import Entry, Section, Summary

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": "$-$",
}


def escape(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def summary_latex(summary: Summary) -> str:
    """One ``table`` with every section as a block of rows; best bold, second underlined."""
    width = max(len(section.columns) for section in summary.tables)
    compared = bool(summary.comparisons)
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape(summary.title)}. {escape(summary.caption)}}}",
        f"\\begin{{tabular}}{{l{'r' * (width + compared)}}}",
        "\\toprule",
    ]
    for place, section in enumerate(summary.tables):
        if place:
            lines.append("\\midrule")
        if section.title:
            span = 1 + width + compared
            lines.append(f"\\multicolumn{{{span}}}{{l}}{{\\emph{{{escape(section.title)}}}}} \\\\")
        lines += _block(summary, section, compared=compared, first=place == 0)
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(lines)


def _block(summary: Summary, section: Section, *, compared: bool, first: bool) -> list[str]:
    heading = ["method", *map(escape, section.columns)]
    if compared:
        heading.append(f"vs {escape(summary.baseline or '')}" if first else "")
    lines = [" & ".join(heading) + r" \\", "\\midrule"]
    for method in summary.methods:
        row = [escape(method), *(_entry(entry) for entry in section.rows[method])]
        if compared:
            row.append(_difference(summary, method) if first else "")
        lines.append(" & ".join(row) + r" \\")
    return lines


def _entry(entry: Entry) -> str:
    if entry.estimate is None:
        return entry.absence or "--"
    figure = entry.figure.replace("-", "$-$")
    figure = {1: f"\\textbf{{{figure}}}", 2: f"\\underline{{{figure}}}"}.get(entry.place, figure)
    half = entry.half
    return f"{figure} {{\\scriptsize$\\pm${half}}}" if half else figure


def _difference(summary: Summary, method: str) -> str:
    found = summary.comparisons.get(method)
    if found is None:
        return "--"
    half = summary.half(found.difference, found.pairs)
    text = escape(summary.signed(found.difference.value))
    text += f" {{\\scriptsize$\\pm${half}}}" if half else ""
    return text + ("$^{*}$" if found.significant else "")
