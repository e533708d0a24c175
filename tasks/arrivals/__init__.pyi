from tasks.arrivals.announcing import PROJECT_LABEL as PROJECT_LABEL
from tasks.arrivals.announcing import announce as announce
from tasks.arrivals.inbox import inbox_overrides as inbox_overrides
from tasks.arrivals.inbox import mark_announced as mark_announced
from tasks.arrivals.inbox import notice as notice
