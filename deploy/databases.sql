\set ON_ERROR_STOP on
\getenv password STUDIES_PASSWORD

-- Users who tune get the password of this role, which sees studies and nothing else. The statement that sets it does
-- nothing more: the log of PostgreSQL has statements that fail.
BEGIN;
CREATE ROLE studies LOGIN;
GRANT studies TO CURRENT_USER;
ALTER ROLE studies PASSWORD :'password';
COMMIT;

CREATE DATABASE optuna OWNER studies;
CREATE DATABASE mlflow;    -- runs and the registry
CREATE DATABASE accounts;  -- users of the tracking server, their hashed passwords and what they may
REVOKE ALL ON DATABASE mlflow, accounts FROM PUBLIC;
