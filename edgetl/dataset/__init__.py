"""A folder, a table or a built-in collection of pictures, audited and split, always in the same order.

Accepted sources::

    root/{train,val[,test]}/class/picture     split by the folders
    root/class/picture                        split by the pictures' content, stable when files are added
    table.csv                                 columns path,label[,split]; paths relative to the table
    digits                                    scikit-learn's 1,797 scanned digits, 8 x 8
"""

from edgetl.dataset.collection import VAL_FRACTION, Dataset, Item, Source, calibration_sample, open_dataset
from edgetl.dataset.look import Audit
from edgetl.dataset.sources import BUILT_IN, EXTENSIONS, write_digits

__all__ = [
    "BUILT_IN",
    "EXTENSIONS",
    "VAL_FRACTION",
    "Audit",
    "Dataset",
    "Item",
    "Source",
    "calibration_sample",
    "open_dataset",
    "write_digits",
]
