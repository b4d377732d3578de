<?php
// PHP begins each request anew: its own counter is one as well. What it has of a body is in php://input.
$count = ($count ?? 0) + 1;
echo "count $count bytes ", strlen(file_get_contents("php://input")), "\n";
