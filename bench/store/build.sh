#!/usr/bin/env bash
# build.sh DIRECTORY : OrderedStore there, with a small Java runtime and a Dockerfile: DIRECTORY/store HOST PORT. Needs mvn and a JDK from 17 on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$PWD/lib" >&2
javac -cp "lib/*" -d classes "$here/OrderedStore.java"
rm -rf jre
jlink --add-modules java.base,java.logging,java.management,java.naming,java.desktop --strip-debug --no-man-pages --no-header-files --output jre
cat > store <<'SCRIPT'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/jre/bin/java" -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$here/classes:$here/lib/*" OrderedStore "$@"
SCRIPT
chmod +x store
cat > Dockerfile <<'DOCKERFILE'
FROM debian:bookworm-slim
COPY . /opt/store
EXPOSE 27017
VOLUME /data
CMD ["/opt/store/store", "0.0.0.0", "27017"]
DOCKERFILE
