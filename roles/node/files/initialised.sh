# Sourced by the image as the last step of a first start (/docker-entrypoint-initdb.d), before the
# server can be reached from outside. A volume without this mark was cut short, and nobody's data
# is in it.
touch "$PGDATA/.geo-sharding-lab-initialised"
