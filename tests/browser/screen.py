"""What stands on a terminal after what was written to it, as a page for the browser."""

from __future__ import annotations

import io
import re

from rich.console import Console
from rich.text import Text

_PIECES = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
_PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #16191f; color: #d6d9de }}
pre {{ margin: 0; padding: 14px; font: 14px/1.35 "DejaVu Sans Mono", monospace; width: {width}ch }}
</style><pre>$ {command}
{code}</pre>"""


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The lines there are now, with their colours: what rich clears and draws anew stands there once."""
        lines, row = [""], 0
        for numbers, letter, control, text in _PIECES.findall(self.getvalue()):
            if control == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif letter == "A":
                row = max(row - int(numbers or 1), 0)
            elif letter == "K":
                lines[row] = ""
            elif letter == "m":
                lines[row] += f"\x1b[{numbers}m"
            elif text:
                lines[row] += text
        return lines


def page(command: str, lines: list[str], width: int) -> str:
    """The lines as an HTML page that needs nothing else."""
    console = Console(record=True, width=width, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)
    pre = console.export_html(inline_styles=True, code_format="{code}")
    return _PAGE.format(width=width, command=command, code=pre)
