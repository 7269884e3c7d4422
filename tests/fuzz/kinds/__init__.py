"""The kinds of cases by name."""

from tests.fuzz.case import Make
from tests.fuzz.kinds import configs, models, pictures, run_folders, tables

KINDS: dict[str, Make] = {
    f"{module.__name__.rpartition('.')[2]}.{make.__name__}": make
    for module, makes in {
        tables: (
            tables.cells,
            tables.typed_cells,
            tables.columns,
            tables.repeated,
            tables.conversations,
            tables.texts,
            tables.table_bytes,
            tables.table_names,
        ),
        pictures: (pictures.files, pictures.cells, pictures.folders),
        configs: (
            configs.run_values,
            configs.recipe_values,
            configs.task_values,
            configs.suite_values,
            configs.syntax,
            configs.overrides,
            configs.outputs,
            configs.prompts,
            configs.objectives,
        ),
        models: (
            models.json_values,
            models.files,
            models.tensors,
            models.shards,
            models.templates,
            models.foreign_code,
        ),
        run_folders: (
            run_folders.bytes_of_state,
            run_folders.values_of_state,
            run_folders.text_of_state,
            run_folders.other_things,
            run_folders.missing_folders,
            run_folders.changed_inputs,
            run_folders.evaluations,
            run_folders.verbs,
        ),
    }.items()
    for make in makes
}
