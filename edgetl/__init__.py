"""edgetl: from a folder of pictures to a small, fast, proven classifier on a device.

A device app needs this module alone::

    import edgetl
    with edgetl.load("parts.edgetl") as classify:
        print(classify("bolt.jpg").label)

Importing it, and loading a bundle, never imports torch.
"""

from edgetl.errors import EdgetlError
from edgetl.runtime import Classifier, Prediction, load

__all__ = ["Classifier", "EdgetlError", "Prediction", "__version__", "load"]

__version__ = "0.1.0"
