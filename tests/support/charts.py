"""What a chart draws, read from its specification as Vega-Lite gets it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gisgd_ray.figures.charts import Chart


@dataclass(frozen=True)
class Drawn:
    """One panel of a chart."""

    title: list[str]
    rows: pd.DataFrame
    """All that its layers draw from."""
    layers: list[dict[str, Any]]
    """Each with a mark of its own."""

    @property
    def axes(self) -> list[dict[str, Any]]:
        """The encodings of x, of y, and of y at the right if there is one."""
        found: dict[str, dict[str, Any]] = {}
        for layer in self.layers:
            for name in ("x", "y"):
                its = layer["encoding"].get(name, {})
                if "title" in its:
                    side = its.get("axis", {}).get("orient", "") if name == "y" else ""
                    found.setdefault(name + side, its)
        return list(found.values())

    def curve(self, series: str, **also: Any) -> pd.DataFrame:
        """The rows of one series."""
        rows = self.rows[self.rows["series"] == series]
        for name, value in also.items():
            rows = rows[rows[name] == value]
        return rows

    def marks(self, kind: str) -> list[dict[str, Any]]:
        return [layer for layer in self.layers if layer["mark"]["type"] == kind]


def drawn(chart: Chart) -> list[Drawn]:
    """The chart's panels, in their order."""
    spec = chart.to_dict()
    found = []
    for panel in spec["concat"]:
        layers = list(_layers(panel))
        names = [part["data"]["name"] for part in [panel, *layers] if "data" in part]
        names = names or [spec["data"]["name"]]  # the same in all panels
        data = [pd.DataFrame(spec["datasets"][name]) for name in dict.fromkeys(names)]
        rows = pd.concat(data, ignore_index=True)
        if rows.empty:
            rows = pd.DataFrame(columns=["x", "y", "series", "drawn"])
        found.append(Drawn(panel["title"]["text"], rows, layers))
    return found


def _layers(panel: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for layer in panel["layer"]:
        if "layer" in layer:
            yield from _layers(layer)
        else:
            yield layer


def legend(chart: Chart) -> dict[str, str]:
    """Colours by name, as the legend has them."""
    for layer in drawn(chart)[0].layers:
        scale = layer["encoding"].get("stroke", {}).get("scale")
        if scale:
            return dict(zip(scale["domain"], scale["range"], strict=True))
    return {}
