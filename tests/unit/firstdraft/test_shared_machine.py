from config.settings import read_settings
from firstdraft.local.running import SHARED_NICENESS, shared_machine


def test_on_one_machine_the_cloud_steps_back_unless_the_settings_say_how_far():
    assert shared_machine(read_settings()) == {"FIRSTDRAFT_CLOUD__NICENESS": str(SHARED_NICENESS)}
    assert shared_machine(read_settings(cloud={"niceness": 3})) == {}
