"""What all figures share: the colour of their words, and the way to a file."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#333333"


def save_figure(figure: Figure, file: Path) -> Path:
    """Writes a PNG and returns its path."""
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=120)
    return file
