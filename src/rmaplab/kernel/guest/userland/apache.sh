# SPDX-License-Identifier: GPL-2.0-or-later
# Apache with mpm_prefork: one process a request, replaced after a hundred; each runs PHP in its own address space.
. /rmaplab/common.sh

modules=/usr/lib/apache2/modules
mkdir -p /srv/www /run/apache
cat >/run/apache/httpd.conf <<CONF
ServerRoot /run/apache
ServerName localhost
Listen 127.0.0.1:8080
PidFile /run/apache/pid
ErrorLog /run/apache/error.log
DocumentRoot /srv/www
User www-data
Group www-data
LoadModule mpm_prefork_module $modules/mod_mpm_prefork.so
LoadModule authz_core_module $modules/mod_authz_core.so
LoadModule php_module $(echo $modules/libphp*.so)
StartServers 16
MinSpareServers 8
MaxSpareServers 24
MaxRequestWorkers 40
MaxConnectionsPerChild 100
<FilesMatch "\.php$">
    SetHandler application/x-httpd-php
</FilesMatch>
CONF
cat >/srv/www/index.php <<'PHP'
<?php
$words = [];
for ($i = 0; $i < 5000; $i++) {
    $words[md5("$i" . getmypid())] = str_repeat(chr(97 + $i % 26), $i % 50);
}
ksort($words);
echo strlen(implode(" ", $words)), "\n";
PHP
apache2 -f /run/apache/httpd.conf
until_true ab -q -n 1 http://127.0.0.1:8080/index.php
ab -q -c 24 -t 100000 -n 10000000 http://127.0.0.1:8080/index.php >/dev/null 2>&1 &
sleep 5
moment 1
kill -USR1 "$(cat /run/apache/pid)"
sleep 6
moment 2
memory_short 12M
moment 3
go_on
