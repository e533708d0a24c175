from tasks.validation.judging import validate_language as validate_language
from tasks.validation.judging import validate_target_task as validate_target_task
from tasks.validation.judging import validate_test as validate_test
