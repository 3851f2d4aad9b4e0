"""Ansible module: run idempotent SQL scripts on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_sql
short_description: Run idempotent SQL scripts on a node
description:
  - Waits until the node takes a login, then runs each script in a transaction of its own.
  - Reports a change exactly where a script wrote something (its transaction got an id), which the
    community modules cannot tell for anything but plain DML. Scripts must write only what is not
    yet as they want it.
options:
  login: {description: 'host, port, user, password and dbname.', type: dict, required: true}
  scripts:
    description: The scripts, in order.
    type: list
    elements: dict
    default: []
    options:
      name: {description: How errors name the script., type: str, required: true}
      text: {description: The statements., type: str, required: true}
  minimum_version: {description: Oldest PostgreSQL major that will do., type: int, default: 15}
  timeout_s: {description: Seconds to wait for a login., type: int, default: 60}
attributes:
  check_mode:
    support: full
    description: Runs the scripts and rolls them back; a node that does not answer is a change.
author: The geo-sharding lab maintainers
"""

EXAMPLES = r"""
- name: Create the tables
  lab_sql:
    login: {host: 127.0.0.1, port: 5432, user: postgres, password: secret}
    scripts:
      - name: tables.sql
        text: CREATE TABLE IF NOT EXISTS customer (id uuid PRIMARY KEY)
"""

RETURN = r"""
changed_scripts: {description: Names of the scripts that wrote., type: list, returned: success}
server_version: {description: 'As server_version_num.', type: int, returned: success}
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "login": {
                "type": "dict",
                "required": True,
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "user": {"type": "str", "required": True},
                    "password": {"type": "str", "required": True, "no_log": True},
                    "dbname": {"type": "str", "default": "postgres"},
                },
            },
            "scripts": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "text": {"type": "str", "required": True},
                },
            },
            "minimum_version": {"type": "int", "default": 15},
            "timeout_s": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    from workload.errors import LabError, WrongPasswordError
    from workload.sql import Login, apply, connect

    asked = module.params
    scripts = [dict(script) for script in asked["scripts"]]
    login = Login(**asked["login"])
    try:
        try:
            connection = connect(login, 0 if module.check_mode else asked["timeout_s"])
        except WrongPasswordError as error:
            module.fail_json(msg=str(error), wrong_password=True)
        except LabError:
            # A dry run on an empty lab: nothing answers yet, so everything would be new.
            if not module.check_mode:
                raise
            names = [script["name"] for script in scripts]
            module.exit_json(changed=bool(names), changed_scripts=names, server_version=0)
        with connection:
            version = connection.info.server_version
            if version // 10_000 < asked["minimum_version"]:
                raise LabError(
                    f"{login.where} runs PostgreSQL {version // 10_000}: the lab needs"
                    f" {asked['minimum_version']} or newer"
                )
            changed = apply(connection, scripts, dry_run=module.check_mode)
    except LabError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(changed), changed_scripts=changed, server_version=version)


if __name__ == "__main__":
    main()
