from big_vision_lite.api import FittedLaw as FittedLaw
from big_vision_lite.api import Run as Run
from big_vision_lite.api import UserError as UserError
from big_vision_lite.api import advise as advise
from big_vision_lite.api import fit_law as fit_law
from big_vision_lite.api import load as load
from big_vision_lite.api import train as train

__version__: str
