"""A folder, a table or a built-in collection of pictures, audited and split, always in the same order.

Accepted sources::

    root/{train,val[,test]}/class/picture     split by the folders
    root/class/picture                        split by the pictures' content, stable when files are added
    table.csv                                 columns path,label[,split]; paths relative to the table
    digits                                    scikit-learn's 1,797 scanned digits, 8 x 8
    cifar10:DIR cifar100:DIR                  the published files, in DIR
    mnist:DIR fashion-mnist:DIR
    webdataset:DIR                            tar shards, DIR/{train,val}/*.tar
"""

from edgetl.dataset.batches import input_batches
from edgetl.dataset.collection import VAL_FRACTION, Dataset, Item, Source, calibration_sample, open_dataset
from edgetl.dataset.look import Audit
from edgetl.dataset.originals import original_of
from edgetl.dataset.sources import BUILT_IN, EXTENSIONS, located, pictures_in, write_digits

__all__ = [
    "BUILT_IN",
    "EXTENSIONS",
    "VAL_FRACTION",
    "Audit",
    "Dataset",
    "Item",
    "Source",
    "calibration_sample",
    "input_batches",
    "located",
    "open_dataset",
    "original_of",
    "pictures_in",
    "write_digits",
]
