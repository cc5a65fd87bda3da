#!/bin/bash
grep -c ",$CUSTOMER," /app/orders.csv > /app/answer.txt
