"""Data schemas: pydantic models with numpy fields, as the guides show them; and reading and writing by a schema."""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Type, Union

import numpy as np
import pydantic

_OLD = pydantic.VERSION.startswith("1.")


class DataSchema(pydantic.BaseModel):
    """The base of all schemas. Fields may be `np.ndarray`."""

    if _OLD:

        class Config:
            """pydantic 1."""

            arbitrary_types_allowed = True
    else:
        model_config = {"arbitrary_types_allowed": True}


class ImageSchema(DataSchema):
    """An image: (rows, columns), (3, rows, columns) for colour, or a stack of them."""

    image: np.ndarray


class MaskSchema(DataSchema):
    """A mask of the same shape: boolean, or labels with 0 for the background."""

    mask: np.ndarray


class EmbeddingSchema(DataSchema):
    """Features of one image; sizes are (rows, columns)."""

    features: np.ndarray
    input_size: tuple
    original_size: tuple


class AlignmentSchema(DataSchema):
    """What aligns two neighbouring images: a 3 × 3 matrix (x, y, 1), and how it was found.

    points1, points2: (n, 2) points (x, y) of the first and the second image.
    """

    transform_matrix: Optional[np.ndarray] = None
    translation_matrix: Optional[np.ndarray] = None
    points1: Optional[np.ndarray] = None
    points2: Optional[np.ndarray] = None
    confidence: Optional[Union[float, np.ndarray]] = None


SCHEMAS: Dict[str, Type[DataSchema]] = {
    kind.__name__: kind for kind in (DataSchema, ImageSchema, MaskSchema, EmbeddingSchema, AlignmentSchema)
}


class SchemaError(ValueError):
    """Data do not fit a schema; the message says which field, and why."""


def checked(schema: Type[pydantic.BaseModel], data: Mapping[str, Any], what: str) -> Dict[str, Any]:
    """The fields of `data` by a schema, as a dict; fields that it does not have are left out.

    Raises:
        SchemaError: a field is missing or of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise SchemaError(f"{what} is no dict but {type(data).__name__}; {schema.__name__} has {_fields(schema)}.")
    arrays = _array_fields(schema)
    plain = {name: value if name in arrays else _plain(value) for name, value in data.items()}
    try:
        model = schema.parse_obj(plain) if _OLD else schema.model_validate(plain)
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise SchemaError(f"{what} does not fit {schema.__name__}: {problems}.") from None
    return {name: getattr(model, name) for name in _names(schema)}


def _names(schema: Type[pydantic.BaseModel]) -> List[str]:
    return list(schema.__fields__ if _OLD else schema.model_fields)


def _fields(schema: Type[pydantic.BaseModel]) -> str:
    return ", ".join(_names(schema)) or "no fields"


def _array_fields(schema: Type[pydantic.BaseModel]) -> Sequence[str]:
    """The fields that hold arrays, which are handed over as they are."""
    found = []
    for name in _names(schema):
        kind = schema.__fields__[name].outer_type_ if _OLD else schema.model_fields[name].annotation
        if "ndarray" in str(kind):
            found.append(name)
    return found


def _plain(value: Any) -> Any:
    """An array of a file as the tuple, number or text that a schema asks for."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value
