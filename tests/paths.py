"""The path of the project's root folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
