"""Ansible module: remove all that a lab made, and nothing else."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_teardown
short_description: Remove all that a lab made, in any state, and nothing else
description:
  - Goes by what is there (labels of Docker objects, node folders below the state folder), not by
    the inventory, so that it also removes what an older inventory named.
options:
  name: {description: The lab's name., type: str, required: true}
  home: {description: The lab's state folder., type: path, required: true}
attributes:
  check_mode: {support: none, description: Refuses to run.}
author: The geo-sharding lab maintainers
"""

EXAMPLES = r"""
- name: Remove the lab
  lab_teardown:
    name: lab
    home: .lab
"""

RETURN = r"""
removed: {description: What was removed, type: list, elements: str, returned: success}
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "home": {"type": "path", "required": True},
        },
        supports_check_mode=False,
    )
    from workload.errors import LabError
    from workload.lab import Lab
    from workload.preflight import absolute
    from workload.teardown import remove

    try:
        removed = remove(Lab(module.params["name"], absolute(module.params["home"])))
    except LabError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(removed), removed=removed)


if __name__ == "__main__":
    main()
