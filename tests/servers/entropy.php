<?php
// What is random in PHP, a line each: its name and a value.
$sources = [
    "random_int" => fn() => random_int(0, PHP_INT_MAX),
    "random_bytes" => fn() => bin2hex(random_bytes(8)),
    "openssl_random_pseudo_bytes" => fn() => bin2hex(openssl_random_pseudo_bytes(8)),
    "mt_rand" => fn() => mt_rand(),
    "lcg_value" => fn() => lcg_value(),
];
foreach ($sources as $name => $source) {
    echo "$name\t", $source(), "\n";
}
