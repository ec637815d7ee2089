"""What runs on the device: numpy, Pillow and one inference engine, never torch."""

from edgetl.runtime.classifier import Classifier, Prediction
from edgetl.runtime.loading import load
from edgetl.runtime.session import Session

__all__ = ["Classifier", "Prediction", "Session", "load"]
