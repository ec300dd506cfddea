CREATE DATABASE mlflow;    -- runs and the registry
CREATE DATABASE accounts;  -- users of the tracking server, their hashed passwords and what they may
CREATE DATABASE optuna;    -- studies
