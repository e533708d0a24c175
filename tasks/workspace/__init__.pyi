from tasks.workspace.durations import expected as expected
from tasks.workspace.stored import StoredSFT as StoredSFT
from tasks.workspace.stored import stored_sfts as stored_sfts
from tasks.workspace.workspace import HELD_OUT as HELD_OUT
from tasks.workspace.workspace import REPORT_FOLDER as REPORT_FOLDER
from tasks.workspace.workspace import SFT_FOLDER as SFT_FOLDER
from tasks.workspace.workspace import Workspace as Workspace
from tasks.workspace.workspace import open_workspace as open_workspace
