"""Algorithm modules for tests, written from the text of the Compox and T3D guides alone.

One per algorithm type; each in two forms: Compox with `__init__(self, task_handler, device)`, T3D with `__init__(self)`
and `initialize(device)`. The segmentation, denoising and registration modules are the guides' own three examples,
rebuilt from their description.
"""

from __future__ import annotations

from pathlib import Path

from tests.repositories import make_repository

ROOTS = {"compox": "compox.algorithm_utils", "t3dserver": "t3d_server.algorithm_utils"}
CONSTRUCTORS = {
    "compox": """
    def __init__(self, task_handler, device: str = "cpu") -> None:
        super().__init__(task_handler, device=device)
        self.form = "task_handler on " + device
""",
    "t3dserver": """
    def __init__(self) -> None:
        super().__init__()
        self.form = None

    def initialize(self, device: str = "cpu"):
        super().initialize(device)
        self.form = "initialize on " + device
""",
}
PYPROJECT = """\
[project]
name = "{name}"
version = "1.0.0"
{project}
[tool.{table}]
algorithm_type = "{type}"
tags = ["{tag}"]
description = "{name}, for a test."
{settings}
"""
RUNNER = """\
import numpy as np
from {root}.{base} import {base}
{imports}

class Runner({base}):
{constructor}
    def load_assets(self):
{assets}

{methods}
"""
IMPORTS = {
    "Image2Segmentation": "from image_segmentation.segmentation_utils import threshold_image",
    "Image2Image": "from image_denoising.denoising_utils import denoise_image",
    "Image2Alignment": "from image_registration.registration_utils import get_random_translation",
    "Generic": "from {root}.io_schemas import DataSchema, ImageSchema\n\n"
    "class MyOutputSchema(DataSchema):\n    output: np.ndarray\n    settings: str\n",
}
METHODS = {
    "Image2Segmentation": """
    def inference(self, data: np.ndarray, args: dict = {}) -> np.ndarray:
        name = args.get("thresholding_algorithm", "otsu")
        self.log_message(f"{self.form}: {name} on {data.shape} {data.dtype}")
        mask = threshold_image(data, name)
        self.set_progress(0.5)
        return mask
""",
    "Image2Image": """
    def inference(self, data: np.ndarray, args: dict = {}) -> np.ndarray:
        self.log_message(f"{self.form}: denoising {data.shape[0]} images")
        images = (data - data.min()) / (data.max() - data.min())
        denoised = np.zeros_like(images)
        for i in range(images.shape[0]):
            denoised[i] = denoise_image(images[i], weight=args.get("denoising_weight", 0.1))
            self.set_progress(i / images.shape[0])
        denoised = (denoised - denoised.min()) / (denoised.max() - denoised.min())
        return denoised.astype(np.float32)
""",
    "Image2Alignment": """
    def inference(self, data: np.ndarray, args: dict = {}) -> list[np.ndarray]:
        self.log_message(f"{self.form}: registering {data.shape[0]} images")
        matrices = []
        for i in range(data.shape[0] - 1):
            matrices.append(get_random_translation(data[i], max_translation=args.get("max_translation", 0.25)))
            self.set_progress(i / data.shape[0])
        return matrices
""",
    "Image2Embedding": """
    def inference(self, data: np.ndarray, args: dict = {}) -> list:
        self.log_message(f"{self.form}: embedding {data.shape}")
        return [np.array([image.mean(), image.std()], np.float32) for image in data]
""",
    "Generic": """
    def preprocess(self, input_data: dict, args: dict = {}) -> np.ndarray:
        my_data = self.fetch_data(input_data["input_dataset_ids"], ImageSchema)
        return np.array(my_data[0]["image"])

    def inference(self, data: np.ndarray, args: dict = {}) -> np.ndarray:
        self.log_message(f"{self.form}: foo of {data.shape}", logging_level="WARNING")
        return data.max(axis=0)

    def postprocess(self, inference_output: np.ndarray, args: dict = {}) -> list[str]:
        settings = repr(sorted(args.items()))
        return self.post_data([{"output": inference_output, "settings": settings}], MyOutputSchema)
""",
}
FILES = {
    "Image2Segmentation": {
        "image_segmentation/__init__.py": "",
        "image_segmentation/segmentation_utils.py": """\
import skimage.filters as skif

def threshold_image(image, thresholding_algorithm):
    return image > getattr(skif, "threshold_" + thresholding_algorithm)(image)
""",
    },
    "Image2Image": {
        "image_denoising/__init__.py": "",
        "image_denoising/denoising_utils.py": """\
from skimage.restoration import (
    denoise_tv_chambolle,
)

def denoise_image(image, weight=0.1):
    return denoise_tv_chambolle(image, weight=weight)
""",
    },
    "Image2Alignment": {
        "image_registration/__init__.py": "",
        "image_registration/registration_utils.py": """\
import numpy as np

def get_random_translation(image: np.ndarray, max_translation: float = 0.25):
    height, width = image.shape[:2]
    h = np.eye(3)
    h[0, 2] = np.random.uniform(-max_translation * width, max_translation * width)
    h[1, 2] = np.random.uniform(-max_translation * height, max_translation * height)
    return h
""",
    },
}
PARAMETERS = {
    "Image2Segmentation": """
    {name = "thresholding_algorithm", description = "The thresholding algorithm to use.", config = {type = "string_enum", default = "otsu", options = ["otsu", "yen", "li", "minimum", "mean", "triangle", "isodata", "local"], adjustable = true}},
""",
    "Image2Image": """
    {name = "denoising_weight", description = "The weight of the denoising term between 0 and 1.", config = {type = "float_range", default = 0.1, min = 0.0, max = 1.0, step = 0.05, adjustable = true}},
""",
    "Image2Alignment": """
    {name = "max_translation", description = "Maximum translation as a fraction of the image size.", config = {type = "float_range", default = 0.25, min = 0.0, max = 1.0, step = 0.05, adjustable = true}},
""",
}
# Word for word the guide's own lines.
EVERY_PARAMETER = """
    {name = "some_string_parameter", description = "This parameter strings.", config = {type = "string", default = "hello", adjustable = true}},
    {name = "some_int_parameter", description = "This paramete ints.", config = {type = "int", default = 42, adjustable = true}},
    {name = "some_float_parameter", description = "This parameter floats.", config = {type = "float", default = 3.14, adjustable = true}},
    {name = "some_bool_parameter", description = "This parameter bools.", config = {type = "bool", default = true, adjustable = true}},
    {name = "some_int_range_parameter", description = "This parameter ranges ints.", config = {type = "int_range", default = 42, min = 0, max = 100, step = 1, adjustable = true}},
    {name = "some_float_range_parameter", description = "This parameter ranges floats.", config = {type = "float_range", default = 3.14, min = 0.0, max = 10.0, step = 0.1, adjustable = true}},
    {name = "some_string_enum_parameter", description = "This parameter enums strings.", config = {type = "string_enum", default = "hello", options = ["hello", "world"], adjustable = true}},
    {name = "some_int_enum_parameter", description = "This parameter enums ints.", config = {type = "int_enum", default = 42, options = [42, 43, 44], adjustable = true}},
    {name = "some_float_enum_parameter", description = "This parameter enums floats.", config = {type = "float_enum", default = 3.14, options = [3.14, 3.15, 3.16], adjustable = true}},
    {name = "some_string_list_parameter", description = "This parameter lists strings.", config = {type = "string_list", default = ["hello", "world"], adjustable = true}},
    {name = "some_int_list_parameter", description = "This parameter lists ints.", config = {type = "int_list", default = [42, 43, 44], adjustable = true}},
    {name = "some_float_list_parameter", description = "This parameter lists floats.", config = {type = "float_list", default = [3.14, 3.15, 3.16], adjustable = true}},
    {name = "some_bool_list_parameter", description = "This parameter lists bools.", config = {type = "bool_list", default = [true, false, true], adjustable = true}},
"""
TYPES = tuple(METHODS)


def files(
    kind: str,
    dialect: str = "compox",
    *,
    methods: str | None = None,
    imports: str | None = None,
    assets: str = "        pass",
    settings: str = "",
    parameters: str | None = None,
    project: str = "",
    root: str | None = None,
    base: str | None = None,
) -> dict[str, str]:
    """The files of a module of one type: path → text."""
    parameters = PARAMETERS.get(kind, "") if parameters is None else parameters
    where = root or ROOTS[dialect]
    brought = IMPORTS.get(kind, "").replace("{root}", where) if imports is None else imports
    return {
        "__init__.py": "",
        "Runner.py": RUNNER.format(
            root=where,
            base=base or ("BaseRunner" if kind == "Generic" else f"{kind}Runner"),
            imports=brought,
            constructor=CONSTRUCTORS[dialect],
            assets=assets,
            methods=METHODS[kind] if methods is None else methods,
        ),
        "pyproject.toml": PYPROJECT.format(
            name=f"{kind.lower()}-{dialect}",
            table=dialect,
            type=kind,
            tag=kind.lower(),
            project=project,
            settings=f"additional_parameters = [{parameters}]\n{settings}",
        ),
        **FILES.get(kind, {}),
    }


def make_module(folder: Path, kind: str = "Image2Segmentation", dialect: str = "compox", **how: str) -> str:
    """A repository with one module; returns the full commit id. `how` goes to `files`."""
    return make_repository(folder, files(kind, dialect, **how))


def write_module(folder: Path, kind: str = "Image2Segmentation", dialect: str = "compox", **how: str) -> Path:
    """A folder with one module, without git."""
    for name, text in files(kind, dialect, **how).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
