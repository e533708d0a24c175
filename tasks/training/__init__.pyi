from tasks.training.learning import store_sft as store_sft
from tasks.training.learning import train_language_sft as train_language_sft
from tasks.training.learning import train_task_sft as train_task_sft
from tasks.training.preparing import labelled_rows as labelled_rows
from tasks.training.preparing import split_examples as split_examples
from tasks.training.preparing import target_objective as target_objective
