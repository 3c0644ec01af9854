"""What the ONNX file says about itself, so that inference needs nothing else."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from segmentor.pixels import Normalisation

KEY = "segmentor"  # of the metadata in the ONNX file
FORMAT = 1


@dataclass(frozen=True)
class Metadata:
    """`classes`: names of classes 1 … K. `tile`: rows and columns of the network's input. `facts`: who made it."""

    classes: tuple[str, ...]
    tile: tuple[int, int]
    normalisation: Normalisation
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text in the file."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "Metadata":
        """The reverse.

        Raises:
            ValueError: the text is of another format.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']} is not {FORMAT}")
            rows, columns = document["tile"]
            normalisation = Normalisation(**document["normalisation"])
            return cls(tuple(document["classes"]), (int(rows), int(columns)), normalisation, document["facts"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the metadata '{KEY}' are not as `export` writes them: {error!r}") from None
