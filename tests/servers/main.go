// net/http: counts what it is asked, and the bytes of a body. At /bytes/N there are N.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
	"strings"
)

func main() {
	count := 0
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		count++
		bytes, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			log.Print(err)
		}
		fmt.Fprintf(w, "count %d bytes %d\n", count, bytes)
	})
	http.HandleFunc("/bytes/", func(w http.ResponseWriter, r *http.Request) {
		bytes, _ := strconv.Atoi(r.URL.Path[len("/bytes/"):])
		io.WriteString(w, strings.Repeat("x", bytes))
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:8000", nil))
}
