// net/http: counts what it is asked, and the bytes of a body.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
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
	log.Fatal(http.ListenAndServe("127.0.0.1:8000", nil))
}
