from tasks.training.learning import store_sft as store_sft
from tasks.training.learning import train_language_sft as train_language_sft
from tasks.training.learning import train_task_sft as train_task_sft
from tasks.training.preparing import target_objective as target_objective
