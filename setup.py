from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "hcd/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="hcd",
    version=VERSION,
    description=(
        "A faithful fastai v1 reproduction of a histopathologic cancer detection walkthrough, on"
        " today's torch"
    ),
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="the authors of hcd",
    # the competition that all of this is about; hcd has no page of its own yet
    url="https://www.kaggle.com/c/histopathologic-cancer-detection",
    license="MIT",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.14",
    # the notebook travels as package data, so that `hcd run` finds the same file wherever hcd is
    # installed
    packages=[*find_packages(include=["hcd", "hcd.*"]), "hcd.notebooks"],
    package_dir={"hcd.notebooks": "notebooks"},
    package_data={
        "hcd": ["py.typed", "*.pyi"],
        "hcd.evidence": ["*.html"],
        "hcd.deploy": ["page/*"],
        "hcd.slide": ["*.html"],
        "hcd.notebooks": ["*.ipynb"],
    },
    entry_points={"console_scripts": ["hcd=hcd.cli:main"]},
    install_requires=[
        "fastai==1.0.61",
        "fastprogress>=1.0,<1.1",  # 1.1 pulls in a web framework
        "setuptools<82",  # fastai imports pkg_resources, which 82 removed
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "opencv-python>=4.10.0.84,<5",  # 5 changed warpAffine
        "pandas>=2.1",
        "scikit-learn>=1.3",
        "matplotlib>=3.8",
        "pillow>=10.0",
        "tqdm>=4.65",
        "scipy>=1.11",
        "jinja2>=3.1",
        "safetensors>=0.4.3",
        "pyyaml>=6.0",
        "papermill>=2.6",  # 2.5 passes today's traitlets what they no longer take
        "nbclient>=0.8",
        "jupyter-client>=8.3",
        "nbconvert>=7.16.5",  # 7.8 breaks with today's mistune
        "nbformat>=5.9",
        "ipykernel>=6.25",
        # fastprogress 1.0 takes 10 for older than 6 and draws a terminal's bars in a notebook
        "ipython>=7.23.1,<10",
    ],
    extras_require={
        # writes ONNX files; to run one, onnxruntime alone is needed
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        "serve": [
            "fastapi>=0.136",
            "starlette>=1.7",  # older ones leave files open
            "uvicorn>=0.30",
            "python-multipart>=0.0.22",
        ],
        "notebook": ["jupyterlab>=4"],  # opens what `hcd notebook` copies
        "pcam": ["h5py>=3.10", "isal>=1.7"],  # reads PatchCamelyon's files, and those gzipped
        # reads whole slides; of tiffslide, 3 and later need Python 3.11
        "slide": [
            "openslide-python>=1.4.1",
            "openslide-bin>=4.0.1",
            "tiffslide>=2.5.1",
            "tifffile>=2025.5.10",
        ],
        "tensorboard": ["tensorboard>=2.14"],  # writes what `tensorboard_log` is told
        "test": [
            "pytest>=7.4",
            "hypothesis>=6.90",
            "psutil>=5.9",
            "ruff>=0.6",
            "mypy>=1.11",
            "h5py>=3.10",
            "isal>=1.7",
            "onnx>=1.17",
            "onnxscript>=0.5",
            "onnxruntime>=1.20",
            "fastapi>=0.136",
            "starlette>=1.7",
            "uvicorn>=0.30",
            "python-multipart>=0.0.22",
            "httpx>=0.27",
            "httpx2>=2.0",
            "playwright>=1.40",
            "openslide-python>=1.4.1",
            "openslide-bin>=4.0.1",
            "tiffslide>=2.5.1",
            "tifffile>=2025.5.10",
            "huggingface-hub>=0.25",  # its parser reads the model cards
            "tensorboard>=2.14",
        ],
    },
)
