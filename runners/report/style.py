"""The style sheet of the HTML report: light and dark, nothing loaded from anywhere."""

__all__ = ["STYLE"]

_HEAT_LIGHT = "#f1f4f7 #e2edf6 #d2e4f2 #c0daee #accfe9 #94c1e2 #79b0d9 #4a8fc4 #24609a #f0a23b #e2662f #b3202c".split()
_HEAT_DARK = "#1b222b #1d2f40 #1f3c55 #204a6b #225a83 #256b9c #2d7fb6 #4696cc #6fb1de #f2a945 #f0733b #e5404b".split()
_LINES_LIGHT = "#0b62c4 #c2410c #15803d #7e22ce #be185d #0f766e #a16207 #475569".split()
_LINES_DARK = "#6cb2ff #ff9d5c #5fd38a #c99bff #ff86b8 #4fd0c2 #e7c04a #a9b6c6".split()


def _variables(lines: list[str], heat: list[str]) -> str:
    names = [f"--s{i}:{colour}" for i, colour in enumerate(lines)] + [f"--h{i}:{c}" for i, c in enumerate(heat)]
    return ";".join(names)


_BASE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 24px 72px}
h1{font-size:19px;margin:0 0 2px;font-weight:650}
h2{font-size:20px;margin:44px 0 6px;font-weight:650}
h3{font-size:15px;margin:26px 0 4px;font-weight:650}
p{margin:6px 0;max-width:88ch}
a{color:inherit}
code,.num,td.n,th.n{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:13px}
.soft{color:var(--soft)}
.answer{border:1px solid var(--rule);border-left:6px solid var(--tone);background:var(--card);border-radius:8px;
padding:18px 22px;margin:18px 0}
.answer .verdict{display:inline-block;color:var(--tone);font-weight:700;letter-spacing:.04em;font-size:14px}
.answer .sentence{font-size:17px;margin:6px 0 0;max-width:none;overflow-wrap:anywhere}
.match{--tone:var(--good)}.mismatch{--tone:var(--bad)}.error{--tone:var(--warn)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px 22px;margin:18px 0 0;padding:0}
.facts div{min-width:0}
.facts dt{color:var(--soft);font-size:12.5px}
.facts dd{margin:0;overflow-wrap:break-word}
.layers{display:flex;gap:2px;flex-wrap:wrap}
.layers i{font:600 11px/18px ui-monospace,monospace;width:18px;text-align:center;border-radius:3px;
background:var(--chip)}
.layers i.F{background:var(--ink);color:var(--page)}
ul.notes{margin:8px 0;padding-left:20px;max-width:92ch}
table{border-collapse:collapse;margin:10px 0;max-width:100%}
.wide{overflow-x:auto}
.small td,.small th{font-size:12.5px;padding:3px 9px 3px 0}
th{font-weight:600;text-align:left;color:var(--soft);font-size:12.5px;white-space:nowrap}
th,td{padding:4px 12px 4px 0;border-bottom:1px solid var(--rule);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}
tr.bad td{background:color-mix(in srgb,var(--bad) 9%,transparent)}
.matrix{border-collapse:separate;border-spacing:2px}
.matrix th,.matrix td{border:0;padding:4px 10px}
.matrix td.cell{text-align:right;border-radius:4px;min-width:92px;font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
.matrix td.cell a{text-decoration:none}
.matrix tbody th{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;color:var(--ink)}
.matrix tbody th a{text-decoration:none;border-bottom:1px dotted var(--soft)}
.matrix thead th{position:sticky;top:0;background:var(--page)}
.matrix tbody th{position:sticky;left:0;background:var(--page)}
.many thead th:not(:first-child){writing-mode:vertical-rl;text-align:left}
.matrix.many td.cell{min-width:0;padding:3px 5px;font-size:11.5px;white-space:nowrap}
main:has(.many){max-width:1480px}
.facts .whole{grid-column:1/-1}
.filter{display:flex;flex-wrap:wrap;gap:6px 22px;align-items:center;font-size:13.5px}.filter[hidden]{display:none}
.filter input[type=search]{font:inherit;padding:3px 8px;border:1px solid var(--rule);border-radius:5px;
background:var(--card);color:inherit}
th button{all:unset;cursor:pointer;white-space:nowrap}
th button:focus-visible,a:focus-visible,summary:focus-visible{outline:2px solid var(--s0);outline-offset:2px}
th[aria-sort=descending] button::after{content:" ▾"}th[aria-sort=ascending] button::after{content:" ▴"}
tr:target td{box-shadow:inset 0 2px var(--s0),inset 0 -2px var(--s0)}
td pre{margin:6px 0 2px;white-space:pre-wrap}
td.cell.none{background:repeating-linear-gradient(45deg,var(--chip) 0 6px,transparent 6px 12px);color:var(--soft)}
td.cell.deep{color:#fff}
td.cell.h9,td.cell.h10{color:#17202a}
td.nowrap{white-space:nowrap}
.plot{display:block;width:100%;height:auto;margin:8px 0 0}
.plot text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:var(--soft)}
.plot .end{text-anchor:end}.plot .mid{text-anchor:middle}
.plot .grid{stroke:var(--rule);stroke-width:1}
.plot .line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.plot .band{fill:var(--band)}
.plot line.mark{stroke-width:1.4;stroke-dasharray:5 4}
.plot line.limit{stroke:var(--bad)}.plot text.limit{fill:var(--bad)}
.plot line.window{stroke:var(--ink)}.plot text.window{fill:var(--ink)}
.plot .ring{fill:none;stroke:var(--bad);stroke-width:2.5}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:13px;color:var(--soft);margin:4px 0 0 64px}
.swatch{display:inline-block;width:14px;height:10px;border-radius:2px;margin-right:6px;background:currentColor}
.swatch.noise{background:var(--band)}
.scale{display:flex;align-items:center;gap:8px;font-size:13px;color:var(--soft);margin:4px 0 0 64px;flex-wrap:wrap}
.scale i{display:inline-block;width:20px;height:10px}
details{border-top:1px solid var(--rule);padding:8px 0}
summary{cursor:pointer}
summary code{margin-right:8px}
pre{background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:12px 14px;overflow-x:auto;
font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
.tag{font-size:12.5px;font-weight:650;color:var(--tone)}
"""


def _series() -> str:
    lines = "".join(
        f".plot path.s{i}{{stroke:var(--s{i})}}.plot .dot.s{i},.swatch.s{i}{{fill:var(--s{i});background:var(--s{i})}}"
        for i in range(len(_LINES_LIGHT))
    )
    heat = "".join(
        f".plot path.h{i}{{fill:var(--h{i})}}.scale i.h{i},td.cell.h{i}{{background:var(--h{i})}}"
        for i in range(len(_HEAT_LIGHT))
    )
    return lines + heat


_LIGHT = (
    "--page:#ffffff;--card:#f7f8fa;--ink:#17202a;--soft:#5b6875;--rule:#e1e6eb;--chip:#e6ebf0;--band:#dfe5ea;"
    "--good:#137a3e;--bad:#b3202c;--warn:#96600b;" + _variables(_LINES_LIGHT, _HEAT_LIGHT)
)
_DARK = (
    "--page:#11161c;--card:#171e26;--ink:#e6ebf0;--soft:#98a5b3;--rule:#28323d;--chip:#2a3541;--band:#2b3642;"
    "--good:#58c98a;--bad:#ff6b73;--warn:#e7b04a;" + _variables(_LINES_DARK, _HEAT_DARK)
)
STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}{_BASE}{_series()}"
)
