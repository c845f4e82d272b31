"""The paper's tables from this project's runs, with the published figures beside them."""
